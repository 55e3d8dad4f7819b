//! What the daemon tells the kernel of its own accord, from a thread of its own: a notification
//! may wait for locks that are held by requests which wait for us.

use std::ffi::{OsStr, OsString};
use std::sync::mpsc::{Receiver, Sender, channel};

use fuser::{INodeNo, Notifier};

use crate::engine::Notify;
use crate::types::NodeId;

/// Sends notifications.
#[derive(Debug)]
pub struct KernelNotify(Sender<News>);

#[derive(Debug)]
enum News {
    Superseded(NodeId, OsString, NodeId),
    Attributes(NodeId),
}

impl KernelNotify {
    /// With its thread.
    pub fn start(notifier: Notifier) -> std::io::Result<KernelNotify> {
        let (sender, receiver) = channel();
        std::thread::Builder::new()
            .name("notify".into())
            .spawn(move || send(&notifier, &receiver))?;
        Ok(KernelNotify(sender))
    }
}

fn send(notifier: &Notifier, queue: &Receiver<News>) {
    for news in queue {
        // ENOENT: the name means the new version to the kernel already, or the node is forgotten.
        match news {
            News::Superseded(dir, name, old) => {
                notifier.delete(INodeNo(dir), INodeNo(old), &name).ok();
            }
            // A negative offset: the attributes alone, which waits for nobody.
            News::Attributes(node) => {
                notifier.inval_inode(INodeNo(node), -1, 0).ok();
            }
        }
    }
}

impl Notify for KernelNotify {
    fn superseded(&self, dir: NodeId, name: &OsStr, old: NodeId) {
        self.0
            .send(News::Superseded(dir, name.to_owned(), old))
            .ok();
    }

    fn attributes_changed(&self, node: NodeId) {
        self.0.send(News::Attributes(node)).ok();
    }
}

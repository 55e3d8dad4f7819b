//! What the daemon tells the kernel of its own accord, from a thread of its own: a notification
//! may wait for locks that are held by requests which wait for us.

use std::ffi::{OsStr, OsString};
use std::sync::mpsc::{Receiver, Sender, channel};

use fuser::{INodeNo, Notifier};

use crate::engine::Notify;
use crate::types::NodeId;

/// Sends notifications.
#[derive(Debug)]
pub struct KernelNotify(Sender<(NodeId, OsString, NodeId)>);

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

fn send(notifier: &Notifier, queue: &Receiver<(NodeId, OsString, NodeId)>) {
    for (dir, name, old) in queue {
        // ENOENT: the name means the new version to the kernel already.
        notifier.delete(INodeNo(dir), INodeNo(old), &name).ok();
    }
}

impl Notify for KernelNotify {
    fn superseded(&self, dir: NodeId, name: &OsStr, old: NodeId) {
        self.0.send((dir, name.to_owned(), old)).ok();
    }
}

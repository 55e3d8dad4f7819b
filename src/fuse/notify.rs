//! What the daemon tells the kernel of its own accord, from a thread of its own: a notification
//! may wait. Only one that waits for no lock of a directory or a file may be sent: a thread that
//! waits in the kernel for a program which waits for us can't be killed, and would keep the
//! connection, and all who use it, hanging after the daemon's end.

use std::sync::mpsc::{Receiver, Sender, channel};

use fuser::{INodeNo, Notifier};

use crate::engine::Notify;
use crate::types::NodeId;

/// Sends notifications.
#[derive(Debug)]
pub struct KernelNotify(Sender<Notification>);

/// A node whose attributes have changed, and who waits until the kernel knows.
type Notification = (NodeId, Option<Sender<()>>);

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

fn send(notifier: &Notifier, queue: &Receiver<Notification>) {
    for (node, waiting) in queue {
        // A negative offset: the attributes alone, which waits for nobody. ENOENT: the node is
        // forgotten.
        notifier.inval_inode(INodeNo(node.0), -1, 0).ok();
        if let Some(waiting) = waiting {
            waiting.send(()).ok();
        }
    }
}

impl Notify for KernelNotify {
    fn attributes_changed(&self, node: NodeId) {
        self.0.send((node, None)).ok();
    }

    fn attributes_changed_by_now(&self, node: NodeId) {
        let (told, waiting) = channel();
        if self.0.send((node, Some(told))).is_ok() {
            // An error is the thread's end: the mount is gone.
            waiting.recv().ok();
        }
    }
}

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
pub struct KernelNotify(Sender<NodeId>);

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

fn send(notifier: &Notifier, queue: &Receiver<NodeId>) {
    for node in queue {
        // A negative offset: the attributes alone, which waits for nobody. ENOENT: the node is
        // forgotten.
        notifier.inval_inode(INodeNo(node), -1, 0).ok();
    }
}

impl Notify for KernelNotify {
    fn attributes_changed(&self, node: NodeId) {
        self.0.send(node).ok();
    }
}

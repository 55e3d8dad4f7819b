//! Requests to an engine, one at a time as its dispatcher takes them, and their answers, which are waited for.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use commitfs::engine::{
    CreateRequest, Created, DirEntry, Engine, LockRequest, OpenRequest, Opened, SetAttr,
    WriteRequest,
};
use commitfs::runtime::pool::do_own_jobs;
use commitfs::types::{Attr, Caller, HandleId, NodeId, OpResult};
use parking_lot::{Condvar, Mutex};
use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

/// A request that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20);
/// Of so many requests workers do one.
const WORKERS_DO: u64 = 31;

/// Where an answer comes.
struct Answer<T>(Arc<(Mutex<Option<T>>, Condvar)>);

impl<T: Send + 'static> Answer<T> {
    fn new() -> Answer<T> {
        Answer(Arc::new((Mutex::new(None), Condvar::new())))
    }

    fn giver(&self) -> impl FnOnce(T) + Send + 'static {
        let place = self.0.clone();
        move |answer| {
            *place.0.lock() = Some(answer);
            place.1.notify_one();
        }
    }

    fn wait(self, what: &str, limit: Duration) -> T {
        let (place, came) = &*self.0;
        let mut place = place.lock();
        while place.is_none() {
            let timed_out = came.wait_for(&mut place, limit).timed_out();
            assert!(!timed_out, "this request hangs: {what}");
        }
        place.take().expect("it came")
    }
}

/// The connection to a daemon: what is not answered when it is cut off is ENOTCONN.
#[derive(Default)]
pub struct Connection {
    engine: Mutex<Option<Arc<Engine>>>,
    asked: AtomicU64,
}

impl Connection {
    pub fn begin(&self, engine: Arc<Engine>) {
        *self.engine.lock() = Some(engine);
    }

    /// Requests are refused from now on.
    pub fn end(&self) -> Option<Arc<Engine>> {
        self.engine.lock().take()
    }

    pub fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.lock().clone()
    }

    /// Sends a request when its turn has come, and waits for its answer.
    fn ask<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        send: impl FnOnce(&Arc<Engine>, Answered<T>),
    ) -> OpResult<T> {
        let answer = Answer::new();
        // What a worker is for is done here, most of the time: it waits for nobody else then.
        match self.asked.fetch_add(1, Ordering::Relaxed) % WORKERS_DO {
            0 => self.dispatch(&answer, send)?,
            _ => {
                let mut sent = Ok(());
                do_own_jobs(|| sent = self.dispatch(&answer, send));
                sent?;
            }
        }
        answer.wait(what, limit)
    }

    fn dispatch<T: Send + 'static>(
        &self,
        answer: &Answer<OpResult<T>>,
        send: impl FnOnce(&Arc<Engine>, Answered<T>),
    ) -> OpResult<()> {
        let dispatcher = self.engine.lock();
        let engine = dispatcher.as_ref().ok_or(Errno::NOTCONN)?;
        send(engine, Box::new(answer.giver()));
        Ok(())
    }

    fn send<T>(&self, send: impl FnOnce(&Arc<Engine>) -> OpResult<T>) -> OpResult<T> {
        let dispatcher = self.engine.lock();
        let engine = dispatcher.as_ref().ok_or(Errno::NOTCONN)?;
        send(engine)
    }

    pub fn lookup(&self, by: Caller, dir: NodeId, name: &str) -> OpResult<Attr> {
        self.ask("lookup", LIMIT, |engine, done| {
            engine.lookup(by, dir, OsStr::new(name), done);
        })
    }

    pub fn forget(&self, node: NodeId, count: u64) {
        let forgotten = self.send(|engine| {
            engine.forget(node, count);
            Ok(())
        });
        // A daemon that is gone has forgotten it.
        forgotten.ok();
    }

    pub fn getattr(&self, by: Caller, node: NodeId, handle: Option<HandleId>) -> OpResult<Attr> {
        self.send(|engine| engine.getattr(by, node, handle))
    }

    pub fn setattr(
        &self,
        by: Caller,
        node: NodeId,
        handle: Option<HandleId>,
        change: SetAttr,
    ) -> OpResult<Attr> {
        self.ask("setattr", LIMIT, |engine, done| {
            engine.setattr(by, node, handle, change, done);
        })
    }

    /// May wait for a writer slot as long as it likes.
    pub fn open(&self, by: Caller, node: NodeId, flags: OFlags) -> OpResult<Opened> {
        let request = OpenRequest { flags };
        self.ask("open", LIMIT * 60, |engine, done| {
            engine.open(by, node, request, done);
        })
    }

    pub fn create(&self, by: Caller, dir: NodeId, name: &str, flags: OFlags) -> OpResult<Created> {
        let request = CreateRequest {
            dir,
            name: name.into(),
            mode: libc::S_IFREG | 0o666,
            umask: 0o022,
            flags,
        };
        self.ask("create", LIMIT, |engine, done| {
            engine.create(by, request, done);
        })
    }

    pub fn read(&self, handle: HandleId, offset: u64, size: u32) -> OpResult<Vec<u8>> {
        self.ask("read", LIMIT, |engine, done| {
            engine.read(handle, offset, size, done);
        })
    }

    pub fn learn_owner(&self, owner: u64) {
        let learnt = self.send(|engine| {
            engine.learn_owner(owner);
            Ok(())
        });
        learnt.ok();
    }

    pub fn write(
        &self,
        by: Caller,
        handle: HandleId,
        (offset, appends): (u64, bool),
        data: &[u8],
    ) -> OpResult<u32> {
        let request = WriteRequest {
            offset,
            appends,
            kill: false,
            writeback: false,
        };
        self.ask("write", LIMIT, |engine, done| {
            engine.write(by, handle, request, data, done);
        })
    }

    pub fn flush(&self, by: Caller, node: NodeId, handle: HandleId, owner: u64) -> OpResult<()> {
        self.ask("flush", LIMIT, |engine, done| {
            engine.flush(by, node, handle, owner, done);
        })
    }

    /// Nobody waits for its answer.
    pub fn release(&self, node: NodeId, handle: HandleId, owner: Option<u64>) {
        let released = self.send(|engine| {
            commitfs::engine::release(engine, node, handle, owner);
            Ok(())
        });
        released.ok();
    }

    pub fn fsync(&self, handle: HandleId) -> OpResult<()> {
        self.ask("fsync", LIMIT, |engine, done| engine.fsync(handle, done))
    }

    pub fn setlk(&self, by: Caller, request: LockRequest) -> OpResult<()> {
        self.ask("setlk", LIMIT, |engine, done| {
            engine.setlk(by, request, done);
        })
    }

    pub fn mkdir(&self, by: Caller, dir: NodeId, name: &str) -> OpResult<Attr> {
        self.send(|engine| engine.mkdir(by, dir, OsStr::new(name), 0o777, 0o022))
    }

    pub fn unlink(&self, by: Caller, dir: NodeId, name: &str) -> OpResult<()> {
        self.ask("unlink", LIMIT, |engine, done| {
            commitfs::engine::unlink(engine, by, dir, OsStr::new(name), done);
        })
    }

    pub fn rmdir(&self, dir: NodeId, name: &str) -> OpResult<()> {
        self.ask("rmdir", LIMIT, |engine, done| {
            engine.rmdir(dir, OsStr::new(name), done);
        })
    }

    pub fn rename(
        &self,
        by: Caller,
        from: (NodeId, &str),
        to: (NodeId, &str),
        flags: RenameFlags,
    ) -> OpResult<()> {
        let (old, new) = (OsStr::new(from.1), OsStr::new(to.1));
        self.ask("rename", LIMIT, |engine, done| {
            engine.rename(by, from.0, old, to.0, new, flags, done);
        })
    }

    pub fn link(&self, by: Caller, node: NodeId, to: (NodeId, &str)) -> OpResult<Attr> {
        self.ask("link", LIMIT, |engine, done| {
            engine.link(by, node, to.0, OsStr::new(to.1), done);
        })
    }

    pub fn setxattr(&self, by: Caller, node: NodeId, name: &str, value: &[u8]) -> OpResult<()> {
        self.ask("setxattr", LIMIT, |engine, done| {
            engine.setxattr(by, node, OsStr::new(name), value, 0, done);
        })
    }

    pub fn getxattr(&self, by: Caller, node: NodeId, name: &str) -> OpResult<Vec<u8>> {
        self.ask("getxattr", LIMIT, |engine, done| {
            engine.getxattr(by, node, OsStr::new(name), done);
        })
    }

    /// OPENDIR, READDIR to the end, RELEASEDIR.
    pub fn list(&self, by: Caller, node: NodeId) -> OpResult<Vec<DirEntry>> {
        let handle = self.send(|engine| engine.opendir(node))?;
        let listed = self.ask("readdir", LIMIT, |engine, done| {
            engine.readdir(by, handle, 0, done);
        });
        let closed = self.send(|engine| {
            engine.releasedir(handle);
            Ok(())
        });
        closed.and(listed).map(|listed| (*listed).clone())
    }
}

type Answered<T> = Box<dyn FnOnce(OpResult<T>) + Send>;

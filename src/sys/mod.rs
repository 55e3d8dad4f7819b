//! What commitfs asks of the operating system, below every other module. All `unsafe` is here.

pub mod at;
pub mod background;
pub mod clock;
pub mod failpoint;
pub mod heap;
pub mod interrupt;
pub mod mount;
pub mod name_helper;
pub mod pidfd;
pub mod proc;
pub mod process;
pub mod signals;
pub mod spare;
pub mod terminal;
pub mod watch_helper;

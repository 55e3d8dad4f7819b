//! The kinds of open descriptions: a type and a file for each, behind [`OpenFile`](crate::engine::base::handle::OpenFile).

mod appender;
mod directory;
mod reader;
mod staged;
mod text;
mod watch_helper;

pub use directory::OpenDirectory;
pub use reader::VersionReader;
pub use staged::StagedFile;
pub use text::TextFile;
pub use watch_helper::HelperFile;

//! A file system as a value: files, names and attributes, and the operations that change them.

use std::collections::BTreeMap;
use std::sync::Arc;

pub type Ino = u64;
pub type Name = Vec<u8>;

/// The directory at the top.
pub const TOP: Ino = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
}

/// One thing that a program has asked of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A file without a name.
    Make {
        ino: Ino,
        kind: Kind,
        mode: u32,
    },
    Enter {
        dir: Ino,
        name: Name,
        ino: Ino,
    },
    Leave {
        dir: Ino,
        name: Name,
    },
    Move {
        from: (Ino, Name),
        to: (Ino, Name),
        exchange: bool,
    },
    Write {
        ino: Ino,
        offset: u64,
        data: Vec<u8>,
    },
    /// Zeros; no data travels.
    Zero {
        ino: Ino,
        offset: u64,
        len: u64,
    },
    Resize {
        ino: Ino,
        len: u64,
    },
    Mode {
        ino: Ino,
        mode: u32,
    },
    Owner {
        ino: Ino,
        uid: u32,
        gid: u32,
    },
    Modified {
        ino: Ino,
        ns: u64,
    },
    Attribute {
        ino: Ino,
        name: Name,
        value: Option<Vec<u8>>,
    },
    SyncData {
        ino: Ino,
    },
    Sync {
        ino: Ino,
    },
    SyncAll,
}

#[derive(Clone, Debug)]
pub struct Inode {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Nanoseconds since the epoch.
    pub modified: u64,
    pub changed: u64,
    pub attributes: BTreeMap<Name, Vec<u8>>,
    /// Of a symbolic link, where it leads.
    pub data: Arc<Vec<u8>>,
    pub entries: Arc<BTreeMap<Name, Ino>>,
    pub links: u32,
}

#[derive(Clone, Debug)]
pub struct Tree(pub BTreeMap<Ino, Arc<Inode>>);

impl Tree {
    pub fn new() -> Tree {
        let mut tree = Tree(BTreeMap::new());
        tree.make(TOP, Kind::Directory, 0o755);
        tree
    }

    fn make(&mut self, ino: Ino, kind: Kind, mode: u32) {
        let inode = Inode {
            kind,
            mode,
            uid: 0,
            gid: 0,
            modified: 0,
            changed: 0,
            attributes: BTreeMap::new(),
            data: Arc::default(),
            entries: Arc::default(),
            links: u32::from(ino == TOP),
        };
        self.0.insert(ino, Arc::new(inode));
    }

    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        self.0.get(&ino).map(|inode| &**inode)
    }

    fn of(&mut self, ino: Ino) -> &mut Inode {
        Arc::make_mut(self.0.get_mut(&ino).expect("made before"))
    }

    pub fn find(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        self.get(dir)?.entries.get(name).copied()
    }

    pub fn is_directory(&self, ino: Ino) -> bool {
        self.get(ino)
            .is_some_and(|inode| inode.kind == Kind::Directory)
    }

    /// What a name leads to from now on; `None`: nothing.
    pub fn set(&mut self, dir: Ino, name: &[u8], ino: Option<Ino>) {
        let entries = Arc::make_mut(&mut self.of(dir).entries);
        let old = match ino {
            Some(ino) => entries.insert(name.to_vec(), ino),
            None => entries.remove(name),
        };
        if let Some(old) = old {
            let links = &mut self.of(old).links;
            *links = links.saturating_sub(1);
        }
        if let Some(new) = ino {
            self.of(new).links += 1;
        }
    }

    fn data(&mut self, ino: Ino) -> &mut Vec<u8> {
        Arc::make_mut(&mut self.of(ino).data)
    }

    pub fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) {
        let (data, offset) = (self.data(ino), offset as usize);
        if data.len() < offset + bytes.len() {
            data.resize(offset + bytes.len(), 0);
        }
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn len(&self, ino: Ino) -> u64 {
        self.get(ino).map_or(0, |inode| inode.data.len() as u64)
    }

    /// Does it; a sync does nothing to what programs see.
    pub fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Make { ino, kind, mode } => self.make(*ino, *kind, *mode),
            Operation::Enter { dir, name, ino } => self.set(*dir, name, Some(*ino)),
            Operation::Leave { dir, name } => self.set(*dir, name, None),
            Operation::Move { from, to, exchange } => {
                let (moved, replaced) = (self.find(from.0, &from.1), self.find(to.0, &to.1));
                self.set(to.0, &to.1, moved);
                self.set(from.0, &from.1, replaced.filter(|_| *exchange));
            }
            Operation::Write { ino, offset, data } => self.write(*ino, *offset, data),
            Operation::Zero { ino, offset, len } => {
                let (data, from) = (self.data(*ino), *offset as usize);
                let end = from + *len as usize;
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[from..end].fill(0);
            }
            Operation::Resize { ino, len } => self.data(*ino).resize(*len as usize, 0),
            Operation::Mode { ino, mode } => self.of(*ino).mode = *mode,
            Operation::Owner { ino, uid, gid } => {
                let inode = self.of(*ino);
                (inode.uid, inode.gid) = (*uid, *gid);
            }
            Operation::Modified { ino, ns } => self.of(*ino).modified = *ns,
            Operation::Attribute { ino, name, value } => {
                let attributes = &mut self.of(*ino).attributes;
                match value {
                    Some(value) => attributes.insert(name.clone(), value.clone()),
                    None => attributes.remove(name),
                };
            }
            Operation::SyncData { .. } | Operation::Sync { .. } | Operation::SyncAll => {}
        }
    }

    /// What makes such a tree of an empty one.
    pub fn operations(&self) -> Vec<Operation> {
        let mut all = Vec::new();
        for (ino, inode) in self.0.iter().filter(|(ino, _)| **ino != TOP) {
            let (ino, kind, mode) = (*ino, inode.kind, inode.mode);
            all.push(Operation::Make { ino, kind, mode });
            let (uid, gid) = (inode.uid, inode.gid);
            all.push(Operation::Owner { ino, uid, gid });
            if !inode.data.is_empty() {
                let data = inode.data.to_vec();
                all.push(Operation::Write {
                    ino,
                    offset: 0,
                    data,
                });
            }
            for (name, value) in &inode.attributes {
                let (name, value) = (name.clone(), Some(value.clone()));
                all.push(Operation::Attribute { ino, name, value });
            }
        }
        for (dir, inode) in &self.0 {
            for (name, ino) in inode.entries.iter() {
                let (dir, name, ino) = (*dir, name.clone(), *ino);
                all.push(Operation::Enter { dir, name, ino });
            }
        }
        for (ino, inode) in &self.0 {
            let (ino, ns) = (*ino, inode.modified);
            all.push(Operation::Modified { ino, ns });
        }
        all
    }

    /// When a file was changed last, for who asks the living one.
    pub fn touch(&mut self, ino: Ino, now: u64, modified: bool) {
        let inode = self.of(ino);
        inode.changed = now;
        if modified {
            inode.modified = now;
        }
    }
}

/// An operation, and the instant it was done: nanoseconds of the clock that all processes share.
#[derive(Clone, Debug)]
pub struct Done {
    pub time: u64,
    pub operation: Operation,
}

/// All as bytes: a tag, the time, three numbers, two texts.
pub fn to_bytes(all: &[Done]) -> Vec<u8> {
    let mut out = Vec::new();
    for done in all {
        let (tag, numbers, texts) = parts(&done.operation);
        out.push(tag);
        out.extend(done.time.to_le_bytes());
        for number in numbers {
            out.extend(number.to_le_bytes());
        }
        for text in texts {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text);
        }
    }
    out
}

type Parts<'a> = (u8, [u64; 3], [&'a [u8]; 2]);

fn parts(operation: &Operation) -> Parts<'_> {
    match operation {
        Operation::Make { ino, kind, mode } => {
            (0, [*ino, *kind as u64, (*mode).into()], [b"", b""])
        }
        Operation::Enter { dir, name, ino } => (1, [*dir, *ino, 0], [name, b""]),
        Operation::Leave { dir, name } => (2, [*dir, 0, 0], [name, b""]),
        Operation::Move { from, to, exchange } => {
            (3, [from.0, to.0, (*exchange).into()], [&from.1, &to.1])
        }
        Operation::Write { ino, offset, data } => (4, [*ino, *offset, 0], [data, b""]),
        Operation::Zero { ino, offset, len } => (5, [*ino, *offset, *len], [b"", b""]),
        Operation::Resize { ino, len } => (6, [*ino, *len, 0], [b"", b""]),
        Operation::Mode { ino, mode } => (7, [*ino, (*mode).into(), 0], [b"", b""]),
        Operation::Owner { ino, uid, gid } => (8, [*ino, (*uid).into(), (*gid).into()], [b"", b""]),
        Operation::Modified { ino, ns } => (9, [*ino, *ns, 0], [b"", b""]),
        Operation::Attribute { ino, name, value } => {
            let is_set = value.is_some().into();
            (
                10,
                [*ino, is_set, 0],
                [name, value.as_deref().unwrap_or(b"")],
            )
        }
        Operation::SyncData { ino } => (11, [*ino, 0, 0], [b"", b""]),
        Operation::Sync { ino } => (12, [*ino, 0, 0], [b"", b""]),
        Operation::SyncAll => (13, [0; 3], [b"", b""]),
    }
}

/// What [`to_bytes`] has made.
pub fn from_bytes(mut bytes: &[u8]) -> Vec<Done> {
    let mut all = Vec::new();
    while let Some((tag, rest)) = bytes.split_first() {
        bytes = rest;
        let mut number = || {
            let (number, rest) = bytes.split_first_chunk().expect("a number");
            bytes = rest;
            u64::from_le_bytes(*number)
        };
        let (time, numbers) = (number(), [number(), number(), number()]);
        let mut text = || {
            let (len, rest) = bytes.split_first_chunk().expect("a length");
            let (text, rest) = rest.split_at(u64::from_le_bytes(*len) as usize);
            bytes = rest;
            text.to_vec()
        };
        let texts = [text(), text()];
        all.push(Done {
            time,
            operation: whole(*tag, numbers, texts),
        });
    }
    all
}

fn whole(tag: u8, [ino, second, third]: [u64; 3], [name, other]: [Vec<u8>; 2]) -> Operation {
    match tag {
        0 => Operation::Make {
            ino,
            kind: [Kind::File, Kind::Directory, Kind::Symlink][second as usize],
            mode: third as u32,
        },
        1 => Operation::Enter {
            dir: ino,
            name,
            ino: second,
        },
        2 => Operation::Leave { dir: ino, name },
        3 => Operation::Move {
            from: (ino, name),
            to: (second, other),
            exchange: third != 0,
        },
        4 => Operation::Write {
            ino,
            offset: second,
            data: name,
        },
        5 => Operation::Zero {
            ino,
            offset: second,
            len: third,
        },
        6 => Operation::Resize { ino, len: second },
        7 => Operation::Mode {
            ino,
            mode: second as u32,
        },
        8 => Operation::Owner {
            ino,
            uid: second as u32,
            gid: third as u32,
        },
        9 => Operation::Modified { ino, ns: second },
        10 => Operation::Attribute {
            ino,
            name,
            value: (second != 0).then_some(other),
        },
        11 => Operation::SyncData { ino },
        12 => Operation::Sync { ino },
        _ => Operation::SyncAll,
    }
}

//! Mounting through the set-id helper `fusermount3`, for users who may not mount by themselves.
//!
//! The helper mounts and sends the `/dev/fuse` descriptor back over a socket, whose number it is told in
//! `_FUSE_COMMFD`. That socket is the helper's standard input, so no descriptor has to be made inheritable.

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use super::{MountError, MountFlags, MountRequest, Mounted};

/// The name since libfuse 3, and the one before it.
const NAMES: [&str; 2] = ["fusermount3", "fusermount"];
/// Where to look besides `PATH`, which services tend to have a short one of.
const USUAL_PLACES: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"];
const CONFIGURATION: &str = "/etc/fuse.conf";

/// Whether there is a helper to ask.
pub(super) fn exists() -> bool {
    find().is_some()
}

/// Where the helper is: in `PATH`, or where distributions put it.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(USUAL_PLACES.map(PathBuf::from))
        .collect();
    NAMES
        .iter()
        .flat_map(|name| places.iter().map(move |place| place.join(name)))
        .find(|file| file.is_file())
}

fn command(mountpoint: &Path) -> Result<Command, MountError> {
    let mut command = Command::new(find().ok_or_else(|| MountError::NoHelper {
        path: mountpoint.to_owned(),
    })?);
    // Its messages are searched for words.
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    Ok(command)
}

/// Has the helper mount, and takes the descriptor it sends.
pub(super) fn mount(request: &MountRequest, mountpoint: &Path) -> Result<Mounted, MountError> {
    let failed = |doing| move |error: io::Error| MountError::system(doing, mountpoint, error);
    let allow_other = request.allow_other && super::may_let_others_in();
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed("create a socket")(error.into()))?;
    let mut command = command(mountpoint)?;
    command
        .arg("-o")
        .arg(options(request, allow_other))
        .arg("--")
        .arg(mountpoint);
    let child = command
        .env("_FUSE_COMMFD", "0")
        .stdin(theirs)
        .spawn()
        .map_err(failed("run fusermount3"))?;
    // This process's copy of the helper's end goes, so that its exit is seen as the end of the stream.
    drop(command);
    let received = receive_descriptor(&ours);
    let output = child
        .wait_with_output()
        .map_err(failed("wait for fusermount3"))?;
    match received {
        Ok(Some(device)) if output.status.success() => Ok(Mounted {
            device,
            privileged: false,
            allow_other,
            mountpoint: mountpoint.to_owned(),
        }),
        Err(error) if output.status.success() => {
            Err(failed("receive /dev/fuse from fusermount3")(error.into()))
        }
        _ => Err(refusal(mountpoint, &output.stderr)),
    }
}

/// Has the helper unmount.
pub(super) fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let mut command = command(mountpoint)?;
    command
        .arg("-u")
        .args(lazy.then_some("-z"))
        .arg("--")
        .arg(mountpoint);
    let output = command
        .output()
        .map_err(|error| MountError::system("run fusermount3", mountpoint, error))?;
    if output.status.success() {
        return Ok(());
    }
    if String::from_utf8_lossy(&output.stderr).contains("busy") {
        return Err(MountError::Busy {
            path: mountpoint.to_owned(),
        });
    }
    Err(refusal(mountpoint, &output.stderr))
}

fn refusal(mountpoint: &Path, stderr: &[u8]) -> MountError {
    let said = String::from_utf8_lossy(stderr);
    let reason = match said.trim() {
        "" => {
            "fusermount3 failed without a word; is it set-id root, and /dev/fuse there?".to_owned()
        }
        said => said.lines().collect::<Vec<_>>().join("; "),
    };
    MountError::Refused {
        path: mountpoint.to_owned(),
        reason,
    }
}

/// The one descriptor that comes over the socket, or `None` at its end.
fn receive_descriptor(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        match recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// The helper's `-o`. It splits at commas, and takes a backslash as "the next character as it is".
fn options(request: &MountRequest, allow_other: bool) -> String {
    let read_only = request.read_only || request.flags.contains(MountFlags::RDONLY);
    let mut options = vec![
        if read_only { "ro" } else { "rw" }.to_owned(),
        "nosuid,nodev".to_owned(),
    ];
    let words = [
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::NOATIME, "noatime"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
    ];
    options.extend(
        words
            .iter()
            .filter(|(flag, _)| request.flags.contains(*flag))
            .map(|(_, word)| (*word).to_owned()),
    );
    if request.default_permissions {
        options.push("default_permissions".to_owned());
    }
    if allow_other {
        options.push("allow_other".to_owned());
    }
    options.extend(request.max_read.map(|bytes| format!("max_read={bytes}")));
    options.push(format!("fsname={}", escape(request.source)));
    options.push("subtype=commitfs".to_owned());
    options.join(",")
}

fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, ',' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

pub(super) fn configuration_allows_other() -> bool {
    fs::read_to_string(CONFIGURATION).is_ok_and(|text| allows_other(&text))
}

fn allows_other(configuration: &str) -> bool {
    configuration
        .lines()
        .any(|line| line.split('#').next().unwrap_or_default().trim() == "user_allow_other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_the_source_injects_no_option() {
        assert_eq!(escape(r"/a,allow_other\,b"), r"/a\,allow_other\\\,b");
        let request = MountRequest {
            mountpoint: Path::new("/m"),
            source: "/a,suid",
            allow_other: true,
            default_permissions: true,
            read_only: true,
            flags: MountFlags::NOEXEC,
            max_read: Some(4096),
        };
        assert_eq!(
            options(&request, false),
            r"ro,nosuid,nodev,noexec,default_permissions,max_read=4096,fsname=/a\,suid,subtype=commitfs"
        );
    }

    #[test]
    fn only_the_word_on_a_line_of_its_own_lets_others_in() {
        assert!(allows_other(
            "mount_max = 5\n  user_allow_other  # for all\n"
        ));
        assert!(!allows_other("#user_allow_other\nuser_allow_other2\n"));
    }

    #[test]
    fn the_helpers_words_reach_the_user() {
        let error = refusal(
            Path::new("/m"),
            b"fusermount3: bad mount point /m: Permission denied\n",
        );
        assert_eq!(
            error.to_string(),
            "/m: mounting is refused: fusermount3: bad mount point /m: Permission denied; `commitfs doctor` looks for the cause"
        );
    }
}

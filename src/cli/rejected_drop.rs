//! `commitfs rejected drop`: content that nobody needs any more.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::{Failure, control, exit, output, rejected};
use crate::engine::ControlCommand;
use crate::store::{Rejected, drop_rejected, id_name};

/// Drops contents by their ids, or all; none if one of them isn't there.
pub(super) fn run(dir: &Path, ids: &[String]) -> Result<u8, Failure> {
    let listed = rejected::all(dir)?;
    let chosen: Vec<&Rejected> = if ids.is_empty() {
        listed.iter().collect()
    } else {
        let mut chosen = Vec::new();
        for id in ids {
            let found = rejected::listed_as(&listed, id);
            if found.is_empty() {
                return Err(rejected::no_such(dir, id));
            }
            chosen.extend(found);
        }
        chosen
    };
    let failed =
        |e: &dyn std::fmt::Display| Failure::new(exit::TROUBLE, format!("{}: {e}", dir.display()));
    match control::mount_if_any(dir)? {
        Some(mount) => {
            let ids = chosen.iter().map(|r| id_name(r.id)).collect();
            let answer = control::send(&mount.mount_point, &ControlCommand::Drop { ids })?;
            if let Some(why) = answer.error {
                return Err(failed(&why));
            }
        }
        None => {
            let place = File::open(rejected::place(dir)?).map_err(|e| failed(&e))?;
            for one in &chosen {
                drop_rejected(place.as_fd(), one.id).map_err(|e| failed(&e))?;
            }
        }
    }
    let ids: std::collections::HashSet<_> = chosen.iter().map(|r| r.id).collect();
    let bytes: u64 = listed
        .iter()
        .filter(|r| ids.contains(&r.id))
        .map(|r| r.len)
        .sum();
    output::print(format!("dropped {}, {bytes} bytes\n", ids.len()))?;
    Ok(exit::OK)
}

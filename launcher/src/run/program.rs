//! Finding the program before anything is started, so that a wrong name is one clear line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::io::Errno;

use super::error::RunError;

/// The path that executing `program` means, with `search` as the PATH that the ranks get.
pub(crate) fn resolve(program: &OsStr, search: Option<&OsStr>) -> Result<PathBuf, RunError> {
    if program.as_bytes().contains(&b'/') {
        let path = PathBuf::from(program);
        return check(&path).map(|()| path);
    }
    // What execvp searches without a PATH.
    let search = search.map_or_else(|| OsString::from("/bin:/usr/bin"), OsStr::to_owned);
    let mut refused = None;
    if !program.is_empty() {
        for directory in std::env::split_paths(&search) {
            let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
            let path = directory.join(program);
            match check(&path) {
                Ok(()) => return Ok(path),
                Err(RunError::NotExecutable { errno: Errno::NOENT | Errno::NOTDIR, .. }) => {}
                // A directory or a file without permission further up the PATH: what comes later may do.
                Err(error) => refused = refused.or(Some(error)),
            }
        }
    }
    Err(refused.unwrap_or_else(|| RunError::NotOnPath { program: program.display().to_string() }))
}

fn check(path: &Path) -> Result<(), RunError> {
    let refuse = |errno, hint| Err(RunError::NotExecutable { path: path.to_owned(), errno, hint });
    match std::fs::metadata(path) {
        Err(error) => match super::error::errno_of(&error) {
            errno @ (Errno::NOENT | Errno::NOTDIR) => {
                refuse(errno, "Check the path; it is relative to where you are")
            }
            errno => refuse(errno, "Every directory on the way to it must be searchable"),
        },
        Ok(metadata) if metadata.is_dir() => refuse(Errno::ISDIR, "Name the program inside it"),
        Ok(_) => match rustix::fs::access(path, Access::EXEC_OK) {
            Ok(()) => Ok(()),
            Err(errno) => refuse(errno, "Make it executable (chmod +x), or name its interpreter first"),
        },
    }
}

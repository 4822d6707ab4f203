//! Where a store is: in a file, or in memory.

use std::{
    io,
    path::{Path, PathBuf},
};

use domain_events::{StoreError, StoreErrorKind};

use crate::{OpenError, failure};

/// Where a store is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Memory,
    /// An absolute path without symbolic links, so that one file has one lock. A hard link is
    /// another file here, as it is to `SQLite`.
    File(PathBuf),
}

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// To read and write, made if missing.
    Create,
    /// To read and write what is there.
    Write,
    /// To read only.
    Look,
    /// To read only, leaving no file beside it; for files that nobody writes to.
    LookUntouched,
}

/// What tells a file from any other that may come under its name, as far as that can be told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity(Option<(u64, u64)>);

impl Place {
    /// The place of the file at `path`, whose directory exists.
    pub(crate) fn file(path: &Path) -> Result<Self, OpenError> {
        match path.canonicalize() {
            Ok(path) => Ok(Self::File(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::new_file(path),
            Err(error) => Err(not_found(path, error)),
        }
    }

    fn new_file(path: &Path) -> Result<Self, OpenError> {
        let missing = || OpenError::MissingDirectory {
            path: path.to_owned(),
        };
        let name = path.file_name().ok_or_else(missing)?;
        let folder = path.parent().ok_or_else(missing)?;
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        match folder.canonicalize() {
            // A link to a file that is yet to be made: SQLite would make that one.
            Ok(folder) => match path.read_link() {
                Ok(target) => Self::file(&folder.join(target)),
                Err(_) => Ok(Self::File(folder.join(name))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(error) => Err(not_found(path, error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Memory => Path::new(":memory:"),
            Self::File(path) => path,
        }
    }

    /// What tells the file from any other.
    pub(crate) fn identity(&self) -> Identity {
        // Where it is gone already, every use will say so.
        Identity(self.find().unwrap_or(Some((0, 0))))
    }

    /// Refuses a file that is not the one it was: `SQLite` goes on writing to one that nobody will
    /// find again, and would open another that has its name.
    pub(crate) fn check_is(&self, identity: Identity) -> Result<(), StoreError> {
        let what = "the file of the store is gone";
        match self.find() {
            Ok(found) if found == identity.0 => Ok(()),
            Ok(_) => Err(StoreError::new(StoreErrorKind::Io, what)),
            Err(error) => Err(StoreError::new(StoreErrorKind::Io, what).caused_by(error)),
        }
    }

    /// The file is not opened: to close it would drop SQLite's locks.
    #[cfg(unix)]
    fn find(&self) -> io::Result<Option<(u64, u64)>> {
        use std::os::unix::fs::MetadataExt;

        match self {
            Self::Memory => Ok(None),
            Self::File(path) => path.metadata().map(|file| Some((file.dev(), file.ino()))),
        }
    }

    /// As above: what is open cannot be removed here.
    #[cfg(not(unix))]
    #[expect(clippy::unnecessary_wraps, reason = "it can fail elsewhere")]
    fn find(&self) -> io::Result<Option<(u64, u64)>> {
        Ok(None)
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// What SQLite opens.
    pub(crate) fn uri(&self, access: Access) -> String {
        let Self::File(path) = self else {
            return ":memory:".to_owned();
        };
        let mode = match access {
            Access::Create => "mode=rwc",
            Access::Write => "mode=rw",
            Access::Look => "mode=ro",
            Access::LookUntouched => "mode=ro&immutable=1",
        };
        format!("file:{}?{mode}", escaped(path))
    }
}

fn not_found(path: &Path, error: io::Error) -> OpenError {
    OpenError::Store {
        path: path.to_owned(),
        source: failure::file_error("the file was not found", error),
    }
}

/// The path as it stands in a URI: any byte that might mean something there as `%` and its number.
fn escaped(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let text = bytes.iter().fold(String::new(), |mut text, &byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                text.push(char::from(byte));
            }
            b'\\' if cfg!(windows) => text.push('/'),
            b':' if cfg!(windows) => text.push(':'),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
        text
    });
    match text.strip_prefix("//%3F/") {
        // How Windows spells the absolute path C:\ in full.
        Some(rest) if cfg!(windows) => format!("/{rest}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_means_nothing_in_a_uri_but_itself() {
        let place = Place::File(PathBuf::from("/a b/c?mode=memory#d%20é"));
        assert_eq!(
            place.uri(Access::Write),
            "file:/a%20b/c%3Fmode%3Dmemory%23d%2520%C3%A9?mode=rw"
        );
    }

    #[test]
    fn a_missing_directory_is_told_from_a_missing_file() {
        let folder = tempfile::tempdir().unwrap();
        Place::file(&folder.path().join("a.db")).unwrap();
        let error = Place::file(&folder.path().join("b/a.db")).unwrap_err();
        assert!(matches!(error, OpenError::MissingDirectory { .. }));
    }
}

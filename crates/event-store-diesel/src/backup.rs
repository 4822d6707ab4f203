//! A copy of the database, made while others use it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use diesel::SqliteConnection;
use domain_events::{EventId, StoreError};

use crate::{
    BackupError, failure,
    place::{Access, Place},
    queries,
};

const WHAT: &str = "the backup was not made";

/// Writes what is committed at this moment to a new file at `target`: whole, or not at all.
pub(crate) fn write(conn: &mut SqliteConnection, target: &Path) -> Result<(), BackupError> {
    let failed = |source| BackupError::Store {
        path: target.to_owned(),
        source,
    };
    let exists = || BackupError::Exists {
        path: target.to_owned(),
    };
    if fs::symlink_metadata(target).is_ok() {
        return Err(exists());
    }
    let partial = partial(target);
    let written = copy(conn, &partial).map_err(failed).and_then(|()| {
        let given = give_name(&partial, target);
        given.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(),
            _ => failed(failure::file_error(WHAT, error)),
        })
    });
    // Either it has its name by now, or it is good for nothing.
    let _ = fs::remove_file(&partial);
    written
}

fn copy(conn: &mut SqliteConnection, file: &Path) -> Result<(), StoreError> {
    let uri = Place::File(file.to_owned()).uri(Access::Create);
    let copied = queries::vacuum_into(conn, &uri);
    copied.map_err(|error| failure::store_error(WHAT, error))
}

/// Under another name until it is complete, so that a crash leaves nothing that looks like one.
fn partial(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".{}.partial", EventId::new()));
    name.into()
}

/// A link fails where the name is taken meanwhile; not all file systems know links.
fn give_name(file: &Path, name: &Path) -> io::Result<()> {
    // Opened first, so that nothing is left where it cannot be synchronised.
    let folder = open_folder(name)?;
    match fs::hard_link(file, name) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => fs::rename(file, name)?,
        given => given?,
    }
    // Makes the name survive a loss of power; the file itself was synchronised by SQLite.
    let lasting = folder.map_or(Ok(()), |folder| folder.sync_all());
    lasting.inspect_err(|_| drop(fs::remove_file(name)))
}

#[cfg(unix)]
fn open_folder(file: &Path) -> io::Result<Option<fs::File>> {
    let folder = file.parent().filter(|it| !it.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new("."))).map(Some)
}

#[cfg(not(unix))]
fn open_folder(_: &Path) -> io::Result<Option<fs::File>> {
    Ok(None)
}

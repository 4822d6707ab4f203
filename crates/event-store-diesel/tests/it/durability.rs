//! What reaches the disk before an append is acknowledged, counted from outside (P1).

use std::{
    env, fs,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    crash::{EVENTS, NORMAL, STORE, arguments},
    support::{folder, skipped},
};

const GROUPS: usize = 50;

/// How often a process that appends [`GROUPS`] events, each for itself, synchronises a file;
/// `None` where that cannot be watched here.
fn synchronisations(folder: &Path, normal: bool) -> Option<usize> {
    let trace = folder.join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=fdatasync,fsync", "-o"]);
    command.arg(&trace).arg(env::current_exe().unwrap());
    command.args(arguments());
    command.env(STORE, folder.join("events.db"));
    command.env(EVENTS, GROUPS.to_string());
    if normal {
        command.env(NORMAL, "");
    }
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        output => output.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    if said.matches("\nappended ").count() < GROUPS {
        // What may not trace another process says so, and runs nothing.
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("ptrace"), "{said}\n{complaint}");
        return None;
    }
    let calls = fs::read_to_string(&trace).unwrap();
    // A call that another thread's interrupts has a second line, without its parenthesis.
    let begun = |line: &&str| line.contains("fdatasync(") || line.contains("fsync(");
    Some(calls.lines().filter(begun).count())
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "strace is a tool of Linux")]
fn p1_every_group_is_synchronised_with_the_disk_before_it_is_acknowledged() {
    let (full, normal) = (folder(), folder());
    let counted = synchronisations(full.path(), false).zip(synchronisations(normal.path(), true));
    let Some((full, normal)) = counted else {
        return skipped("strace is missing or not allowed, so nothing was counted");
    };
    assert!(full >= GROUPS, "{full} synchronisations of {GROUPS} groups");
    // So that what was counted is what makes the difference.
    assert!(normal < GROUPS, "{normal} synchronisations under Normal");
}

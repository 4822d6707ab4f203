//! What reaches the disk before an append is acknowledged, counted from outside (P1).

use std::{
    env, fs,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    crash::{EVENTS, NORMAL, STORE, arguments},
    support::{folder, open, skipped},
};

const GROUPS: usize = 50;

/// The calls of these names that a process makes which runs nothing but `child` on a store in
/// `folder`, a line each; `None` where that cannot be watched here.
fn calls(
    folder: &Path,
    names: &str,
    child: &str,
    variables: &[(&str, &str)],
) -> Option<Vec<String>> {
    let trace = folder.join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-qq", "-e", &format!("trace={names}"), "-o"]);
    command.arg(&trace).arg(env::current_exe().unwrap());
    command
        .args(arguments(child))
        .env(STORE, folder.join("events.db"));
    command.envs(variables.iter().copied());
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        output => output.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    if !said.contains("1 passed") {
        // What may not trace another process says so, and runs nothing.
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("ptrace"), "{said}\n{complaint}");
        return None;
    }
    let calls = fs::read_to_string(&trace).unwrap();
    Some(calls.lines().map(str::to_owned).collect())
}

/// How often a process that appends [`GROUPS`] events, each for itself, has synchronised a file
/// before it says that the first is appended, and from each such word to the next.
fn synchronisations(folder: &Path, durability: &[(&str, &str)]) -> Option<Vec<usize>> {
    let groups = GROUPS.to_string();
    let variables = [durability, &[(EVENTS, &*groups)]].concat();
    let names = "fdatasync,fsync,write";
    let calls = calls(folder, names, "crash::child", &variables)?;
    let said = |line: &String| line.contains("appended ");
    // A call that another thread's interrupts has a second line, without a parenthesis before it.
    let has_ended = |line: &&String| line.contains("sync") && line.ends_with("= 0");
    let counted = calls
        .split_inclusive(said)
        .take(GROUPS)
        .map(|calls| calls.iter().filter(has_ended).count());
    Some(counted.collect())
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "strace is a tool of Linux")]
fn p1_every_group_is_synchronised_with_the_disk_before_it_is_acknowledged() {
    let (full, normal) = (folder(), folder());
    let counted = synchronisations(full.path(), &[]);
    let counted = counted.zip(synchronisations(normal.path(), &[(NORMAL, "")]));
    let Some((full, normal)) = counted else {
        return skipped("strace is missing or not allowed, so nothing was counted");
    };
    assert_eq!(full.len(), GROUPS);
    assert!(full.iter().all(|&count| count > 0), "{full:?}");
    // So that what was counted is what makes the difference: under this, nobody waits for a disk.
    assert_eq!(normal[1..], [0; GROUPS - 1]);
}

/// Copies a store into a folder of its own.
#[test]
#[ignore = "a process of its own, started by the test below"]
fn backup() {
    let Some(path) = env::var_os(STORE) else {
        return;
    };
    let path = Path::new(&path);
    let target = path.with_file_name("copies").join("copy.db");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let store = open(path);
    runtime.block_on(store.backup_to(target)).unwrap();
    store.close_blocking();
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "strace is a tool of Linux")]
fn p1_a_backup_has_its_content_and_its_name_on_the_disk_when_it_is_made() {
    let folder = folder();
    let copies = folder.path().canonicalize().unwrap().join("copies");
    fs::create_dir(&copies).unwrap();
    let names = "fdatasync,fsync,link,linkat,rename,renameat,renameat2";
    let Some(calls) = calls(folder.path(), names, "durability::backup", &[]) else {
        return skipped("strace is missing or not allowed, so nothing was seen");
    };
    let is_named = |line: &String| line.contains("copy.db\"") && !line.contains("sync(");
    let named = calls.iter().position(is_named).unwrap();
    let (before, after) = calls.split_at(named);
    let syncs = |line: &String, what: &str| line.contains("sync(") && line.contains(what);
    let content = format!("<{}/copy.db.", copies.display());
    assert!(
        before.iter().any(|line| syncs(line, &content)),
        "{calls:#?}"
    );
    let name = format!("<{}>", copies.display());
    assert!(after.iter().any(|line| syncs(line, &name)), "{calls:#?}");
}

//! One step of a task: a command, printed before it runs.

use std::{
    env,
    ffi::OsStr,
    process::{Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The cargo that runs this task, with arguments.
pub(crate) fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// Says what is done. Standard output belongs to the commands, whose output may be read by others.
pub(crate) fn say(what: &str) {
    eprintln!("▸ {what}");
}

/// Runs the command.
///
/// # Errors
/// When it cannot be run, or does not succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Runs the command and returns how it ended.
///
/// # Errors
/// When it cannot be run.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    say(&line(command));
    command
        .status()
        .with_context(|| format!("`{}` could not be run", line(command)))
}

/// Runs the command and returns how it ended and what it printed to standard output, which must
/// fit into a pipe.
///
/// # Errors
/// When it cannot be run, or does not end within `limit`.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> Result<Output> {
    say(&line(command));
    command.stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("`{}` could not be run", line(command)))?;
    while child.try_wait()?.is_none() {
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!(
                "`{}` did not end within {} s",
                line(command),
                limit.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(child.wait_with_output()?)
}

fn line(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        let value = value?.to_string_lossy();
        Some(format!("{}={value:?}", name.to_string_lossy()))
    });
    // The path of the cargo in use says nothing to a reader who wants to run the line.
    let program = command.get_program().to_string_lossy();
    let program = match program.rsplit(['/', '\\']).next() {
        Some("cargo" | "cargo.exe") => "cargo".to_owned(),
        _ => program.into_owned(),
    };
    let arguments = command
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned());
    variables
        .chain([program])
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

//! The trading example as its user meets it: a program with arguments, output and an exit code.
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
};

use serde_json::Value;
use tempfile::TempDir;

const HEADER: &str = "market,time,open,high,low,close,volume\n";

/// The built example. Cargo names the path of a program to tests, but not that of an example.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        // As the tests are built, so that nothing is built again for other features.
        cargo.args(["build", "--workspace", "--example", "trading"]);
        cargo.args(["--message-format", "json-render-diagnostics", "--quiet"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let built = cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        let messages = String::from_utf8(built.stdout).unwrap();
        let messages = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let executables = messages.filter(|message| message["target"]["name"] == "trading");
        let mut executables =
            executables.filter_map(|it| it["executable"].as_str().map(PathBuf::from));
        executables.next_back().unwrap()
    })
}

/// A folder with the files of one desk.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--db").arg(self.path("a.db")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it to its end, and reads the JSON.
    fn summary(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs it on this input, which is refused; returns the message.
    fn refusal(&self, input: &Path) -> String {
        self.refused(&["--input", input.to_str().unwrap()])
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        text(&output.stderr)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_simulated_run_says_so_and_passes() {
    let place = Place::new();
    let output = place.run(&["--candles", "1500"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("simulated exchange"), "{said}");
    assert!(
        said.contains("✓ nothing is left to do") && !said.contains('✗'),
        "{said}"
    );
}

#[test]
fn json_is_one_object_with_every_figure() {
    let summary = Place::new().summary(&["--candles", "1500"]);
    assert_eq!(summary["candles"], 1500);
    assert_eq!(summary["events"]["market.candle-closed"], 1500);
    for nothing in ["lost", "order_violations", "repeats", "recovered"] {
        assert_eq!(summary[nothing], 0, "{nothing}");
    }
    for figure in [
        "handled",
        "retries",
        "dead_letters",
        "seconds",
        "events_per_second",
    ] {
        assert!(summary[figure].is_number(), "{figure}");
    }
    assert_eq!(summary["portfolio_checksum"].as_str().unwrap().len(), 16);
}

#[test]
fn feeding_a_file_again_appends_nothing_twice_and_one_that_grew_only_the_rest() {
    let place = Place::new();
    let first = place.summary(&["--candles", "700"]);
    let again = place.summary(&["--candles", "700"]);
    assert_eq!(
        (&again["events"], &again["handled"]),
        (&first["events"], &Value::from(0))
    );
    let grown = place.summary(&["--candles", "1000"]);
    let at_once = Place::new().summary(&["--candles", "1000"]);
    assert_eq!(grown["events"], at_once["events"]);
    assert_eq!(grown["portfolio_checksum"], at_once["portfolio_checksum"]);
}

#[test]
fn bad_input_is_named_and_leaves_no_file() {
    let place = Place::new();
    let line = "KRW-BTC,2020-02-20T11:19:00Z,2,3,1,2,5\n";
    let faults = [
        ("", "empty"),
        (HEADER, "no candle"),
        ("time,market\n", "line 1: header"),
        (
            &format!("{HEADER}{line}KRW-BTC,now,2,3,1,2,5\n"),
            "line 3: time",
        ),
        (
            &format!("{HEADER}{line}KRW-BTC,2020-02-20T11:20:00Z,2,3\n"),
            "line 3: 4 fields",
        ),
        (&format!("{HEADER}{line}{line}"), "line 3: time"),
        ("[{\"market\": \"KRW-BTC\"}]", "line 1: not a candle"),
        ("{\"error\": {\"name\": 404}}", "not the array"),
        ("[1, 2", "not JSON"),
    ];
    let input = place.path("candles");
    for (content, said) in faults {
        place.write("candles", content.as_bytes());
        let message = place.refusal(&input);
        assert!(
            message.contains("candles") && message.contains(said),
            "{said}: {message}"
        );
    }
    assert!(
        place
            .refusal(&place.path("missing"))
            .contains("missing: not read")
    );
    assert_eq!(place.names(), ["candles"]);
}

#[test]
fn a_bad_input_leaves_an_earlier_run_as_it_is() {
    let place = Place::new();
    place.summary(&["--candles", "100"]);
    let before = fs::read(place.path("a.db")).unwrap();
    let input = place.write("candles", b"market\n");
    place.refused(&["--fresh", "--input", input.to_str().unwrap()]);
    assert_eq!(fs::read(place.path("a.db")).unwrap(), before);
}

#[test]
fn candles_that_contradict_the_log_are_refused() {
    let place = Place::new();
    place.summary(&["--candles", "100"]);
    let message = place.refused(&["--candles", "100", "--seed", "2"]);
    assert!(message.contains("other prices"), "{message}");
    assert_eq!(place.summary(&["--candles", "100"])["lost"], 0);
}

#[test]
fn candles_from_before_the_log_are_refused_and_none_is_appended() {
    let place = Place::new();
    let candle = |minute: u32| format!("KRW-BTC,2024-01-01T00:{minute:02}:00Z,1,1,1,1,1\n");
    let file = |name: &str, minutes: &[u32]| {
        let lines: String = minutes.iter().map(|&minute| candle(minute)).collect();
        place
            .write(name, format!("{HEADER}{lines}").as_bytes())
            .display()
            .to_string()
    };
    let (late, early) = (
        file("late.csv", &[30, 31]),
        file("early.csv", &[1, 2, 30, 32]),
    );
    place.summary(&["--input", &late]);
    let message = place.refused(&["--input", &early]);
    assert!(
        message.contains("comes before the last one in the log"),
        "{message}"
    );
    let events = &place.summary(&["--input", &late])["events"];
    assert_eq!(events["market.candle-closed"], 2);
}

#[test]
fn a_file_that_is_not_an_event_log_is_refused_and_left() {
    let place = Place::new();
    let letter = b"Dear customer, this is longer than any header of a database.".repeat(20);
    let path = place.write("a.db", &letter);
    for arguments in [&["--candles", "100"][..], &["--candles", "100", "--fresh"]] {
        let message = place.refused(arguments);
        assert!(message.contains("a.db"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), letter);
    }
}

/// Reads lines of a run until one shows that it has the files.
fn until_it_runs(run: &mut Child) -> BufReader<std::process::ChildStdout> {
    let mut lines = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("published") {
        line.clear();
        assert_ne!(
            lines.read_line(&mut line).unwrap(),
            0,
            "it ended before it ran"
        );
    }
    lines
}

#[test]
fn a_second_run_on_a_busy_file_is_refused_and_does_no_harm() {
    let place = Place::new();
    let mut command = place.command(&["--candles", "8000"]);
    let mut first = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Held until the end: a program that nobody listens to ends at its next line.
    let lines = until_it_runs(&mut first);
    for arguments in [&["--candles", "100"][..], &["--candles", "100", "--fresh"]] {
        let message = place.refused(arguments);
        assert!(message.contains("a.db"), "{message}");
    }
    first.kill().unwrap();
    first.wait().unwrap();
    drop(lines);
    // Killed in the middle, it goes on.
    let summary = place.summary(&["--candles", "8000"]);
    assert_eq!(summary["events"]["market.candle-closed"], 8_000);
    assert_eq!(summary["lost"], 0);
}

#[cfg(unix)]
#[test]
fn after_any_number_of_kills_the_portfolio_is_the_same() {
    use std::os::unix::process::ExitStatusExt;

    let whole = Place::new().summary(&["--candles", "3000"]);
    let place = Place::new();
    let arguments = ["--candles", "3000", "--crash-after", "900", "--json"];
    let mut output = place.run(&arguments);
    let mut kills = 0;
    while output.status.signal() == Some(9) {
        kills += 1;
        assert!(kills < 100, "it does not come to an end");
        output = place.run(&arguments);
    }
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(kills > 2, "{kills}");
    let continued: Value = serde_json::from_slice(&output.stdout).unwrap();
    for figure in [
        "events",
        "dead_letters",
        "portfolio_checksum",
        "lost",
        "order_violations",
    ] {
        assert_eq!(continued[figure], whole[figure], "{figure}");
    }
}

#[test]
fn real_candles_pass() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let input = data.join("upbit-krw-btc-1m.json");
    if !input.exists() {
        eprintln!("skipped: {} is not there", input.display());
        return;
    }
    let summary = Place::new().summary(&["--input", input.to_str().unwrap()]);
    assert_eq!(
        (&summary["candles"], &summary["lost"]),
        (&Value::from(200), &Value::from(0))
    );
}

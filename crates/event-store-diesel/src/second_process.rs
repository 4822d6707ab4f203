//! Proof that the writer stays right beside a second process, which appends as it does (P6, P7).

use std::{
    collections::{HashMap, HashSet},
    env,
    io::{BufRead, BufReader, Lines, Write, stdin},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, mpsc},
};

use domain_events::{
    Append, AppendDone, AppendError, Appended, EventId, EventStore, ExpectedVersion, NewEvent,
    Position, Version,
};
use event_testkit::event_store::{Noted, batch, notebook, noted};

use crate::{
    SqliteEventStore, SqliteOptions,
    answering::{Answering, Answers},
    append::AppendRequest,
    database,
    place::Place,
    writer::Writer,
};

const STORE: &str = "EVENT_STORE_OF_SECOND_PROCESS";
const ROUNDS: u64 = 20;
const EVENTS: u64 = 60;

/// What one process appends to.
struct Side<'a> {
    name: &'static str,
    submit: Box<dyn FnMut(Vec<Append>, AppendDone) + 'a>,
}

impl Side<'_> {
    fn append(&mut self, event: NewEvent) -> Result<Appended, AppendError> {
        let (send, answer) = mpsc::channel();
        (self.submit)(batch([event]), Box::new(move |end| send.send(end).unwrap()));
        answer.recv().unwrap().map(|mut all| all.remove(0))
    }

    /// One event of an aggregate that is new, and one of the aggregate that both have, which is
    /// found again: the other process has appended to it since.
    fn take_turn(&mut self, turn: u64) {
        let own = format!("{} {turn}", self.name);
        let new = noted(&own, "").expect(ExpectedVersion::NoStream);
        self.append(new).unwrap();
        let shared = |turn: u64| noted("both", &turn.to_string()).id(id(turn));
        let last = ExpectedVersion::Exact(Version::new(turn));
        let appended = self.append(shared(turn).expect(last)).unwrap();
        assert_eq!(appended.event.version(), Some(Version::new(turn + 1)));
        if let Some(before) = turn.checked_sub(1) {
            let again = self.append(shared(before)).unwrap();
            assert!(again.already_there);
        }
    }

    /// As many as it takes: of those who expect the same version, one wins.
    fn contend(&mut self) {
        let mut known = Version::new(2 * ROUNDS);
        for number in 0..EVENTS {
            let own = ExpectedVersion::Exact(Version::new(number));
            self.append(noted(self.name, "").expect(own)).unwrap();
            let text = format!("{} {number}", self.name);
            known = loop {
                let expected = ExpectedVersion::Exact(known);
                match self.append(noted("both", &text).expect(expected)) {
                    Ok(_) => break known.next(),
                    Err(AppendError::WrongVersion { actual, .. }) => known = actual,
                    Err(other) => panic!("not appended: {other}"),
                }
            };
        }
    }
}

fn id(turn: u64) -> EventId {
    // Sooner ones are greater, so that each has to be looked up.
    EventId::from_bytes(u128::MAX.wrapping_sub(turn.into()).to_be_bytes())
}

/// Takes every other turn, and contends when that is over.
#[test]
#[ignore = "a process of its own, started by the test below"]
#[expect(clippy::print_stdout, reason = "the other process reads it")]
fn second() {
    let Some(path) = env::var_os(STORE) else {
        return;
    };
    let place = Place::file(Path::new(&path)).unwrap();
    let options = SqliteOptions::default();
    let conn = database::writer(&place, place.identity(), &options).unwrap();
    let (answering, _) = Answering::new(Answers::default());
    let mut writer = Writer::new(conn, place, options, answering);
    let mut side = Side {
        name: "second",
        submit: Box::new(move |batch, done| {
            writer.write(vec![Box::new(AppendRequest::new(batch, 1_000, done))]);
        }),
    };
    let mut turns = stdin().lines();
    for round in 0..ROUNDS {
        turns.next().unwrap().unwrap();
        side.take_turn(2 * round + 1);
        println!("\ndone");
    }
    turns.next().unwrap().unwrap();
    side.contend();
}

struct Second {
    child: Child,
    turns: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Second {
    fn start(path: &Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "second_process::second",
                "--exact",
                "--nocapture",
                "--ignored",
            ])
            .env(STORE, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let turns = child.stdin.take().unwrap();
        Self { child, turns, said }
    }

    fn tell(&mut self) {
        writeln!(self.turns, "go").unwrap();
    }

    fn wait(&mut self) {
        assert!(self.said.any(|line| line.unwrap() == "done"));
    }
}

#[tokio::test]
async fn p6_p7_two_processes_that_append_leave_one_log_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let store = SqliteEventStore::open(&path, SqliteOptions::default()).unwrap();
    let mut first = Side {
        name: "first",
        submit: Box::new(|batch, done| store.submit(batch, done)),
    };
    let mut second = Second::start(&path);
    for round in 0..ROUNDS {
        first.take_turn(2 * round);
        second.tell();
        second.wait();
    }
    second.tell();
    first.contend();
    assert!(second.child.wait().unwrap().success());
    drop(first);

    let log = store.read_log(Position::ZERO, usize::MAX).await.unwrap();
    assert_eq!(log.len() as u64, 4 * (ROUNDS + EVENTS));
    let times = log.iter().map(|event| event.recorded().unwrap().at);
    assert!(times.is_sorted());
    let mut versions = HashMap::new();
    let mut texts = HashSet::new();
    for (event, position) in log.into_iter().map(Arc::new).zip(1..) {
        assert_eq!(event.position(), Some(Position::new(position)));
        let last = versions
            .entry(event.aggregate().clone())
            .or_insert(Version::ZERO);
        *last = last.next();
        assert_eq!(event.version(), Some(*last));
        let noted = event.typed::<Noted>().unwrap();
        if event.aggregate() == &notebook("both") {
            assert!(texts.insert(noted.text.clone()), "{} twice", noted.text);
        }
    }
    assert_eq!(texts.len() as u64, 2 * (ROUNDS + EVENTS));
}

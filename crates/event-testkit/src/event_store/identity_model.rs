//! Events that come again in any order of ids and groups, held against a map (P6).

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver};

use domain_events::{
    AppendError, Appended, EventId, ExpectedVersion, NewEvent, Position, Timestamp, Version,
};

use super::{PATIENCE, Store, append_all, batch, log, noted};

/// Whatever ids come in whatever order: each is appended once, and found ever after.
pub async fn p6_events_in_any_order_of_ids_are_found_again(store: &impl Store) {
    check_identities(store, 1, |_| MayFail::Nothing).await;
    check_identities(store, 2, |_| MayFail::Nothing).await;
}

/// What a disturbance leads a store to answer, besides what a map would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayFail {
    /// Every answer is the map's.
    Nothing,
    /// Any request may fail with an error of the store, and is then not in the log.
    Anything,
}

/// Appends batches of random ids, several at a time without waiting, and compares each answer with
/// that of a map from ids to contents. `disturb` may do anything to the store before each round.
///
/// # Panics
/// When an answer is not the map's, or the log is not what was answered.
pub async fn check_identities(
    store: &impl Store,
    seed: u64,
    mut disturb: impl FnMut(usize) -> MayFail,
) {
    let mut random = Random(seed);
    let ids = random.ids();
    let mut known = HashMap::new();
    for round in 0..60 {
        let may_fail = disturb(round);
        let requests: Vec<_> = (0..random.below(12) + 1)
            .map(|_| random.request(&ids))
            .collect();
        let answers: Vec<_> = requests.iter().map(|it| submit(store, it)).collect();
        for (request, answer) in requests.iter().zip(answers) {
            let answer = answer.recv_timeout(PATIENCE).expect("an answer");
            let failed = matches!(
                answer,
                Err(AppendError::Store(_) | AppendError::OutcomeUnknown(_))
            );
            if !(failed && may_fail == MayFail::Anything) {
                check(&mut known, request, answer);
            }
        }
    }
    for (id, (content, position)) in &known {
        let found = store.get(*id).await.expect("read").expect("in the log");
        assert_eq!(found.position(), Some(*position));
        assert_eq!(found.aggregate().id(), content.0.to_string());
    }
    let next = append_all(store, [noted("last", "")]).await;
    assert_eq!(log(store).await.len() as u64, next[0]);
}

/// What tells an event from another with its id: its aggregate and its text.
type Content = (usize, usize);

struct Request {
    events: Vec<(EventId, Content)>,
    is_refused: bool,
}

fn submit(store: &impl Store, request: &Request) -> Receiver<Result<Vec<Appended>, AppendError>> {
    let events = request.events.iter().map(|(id, (notebook, text))| {
        let event = noted(&notebook.to_string(), &text.to_string()).id(*id);
        match request.is_refused {
            true => event.expect(ExpectedVersion::Exact(Version::new(u64::MAX))),
            false => event,
        }
    });
    let events: Vec<NewEvent> = events.collect();
    let (send, receive) = mpsc::channel();
    store.submit(batch(events), Box::new(move |end| drop(send.send(end))));
    receive
}

fn check(
    known: &mut HashMap<EventId, (Content, Position)>,
    request: &Request,
    answer: Result<Vec<Appended>, AppendError>,
) {
    let events = &request.events;
    let mut contents: HashMap<EventId, Content> =
        known.iter().map(|(id, it)| (*id, it.0)).collect();
    let is_taken = events
        .iter()
        .any(|(id, content)| contents.entry(*id).or_insert(*content) != content);
    let present = events.iter().filter(|it| known.contains_key(&it.0)).count();
    match answer {
        _ if is_taken => assert!(matches!(answer, Err(AppendError::IdTaken { .. }))),
        Ok(all) if present == events.len() => {
            for (appended, (id, _)) in all.iter().zip(events) {
                assert!(appended.already_there);
                assert_eq!(appended.event.position(), Some(known[id].1));
            }
        }
        _ if present > 0 => assert!(matches!(answer, Err(AppendError::PartlyThere { .. }))),
        _ if request.is_refused => {
            assert!(matches!(answer, Err(AppendError::WrongVersion { .. })));
        }
        Ok(all) => {
            for (appended, (id, content)) in all.iter().zip(events) {
                let position = appended.event.position().expect("a position");
                let is_twin = known.contains_key(id);
                assert_eq!(appended.already_there, is_twin);
                assert_eq!(known.entry(*id).or_insert((*content, position)).1, position);
            }
        }
        Err(error) => panic!("not appended: {error}"),
    }
}

/// Numbers that look like chance and are the same in each run: the generator is `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    /// Fresh ids, ids derived from them, ids with a time long ago or to come, and any bytes at all.
    fn ids(&mut self) -> Vec<EventId> {
        let mut ids = Vec::new();
        for _ in 0..40 {
            let fresh = EventId::new();
            let days = i64::try_from(self.below(30_000)).unwrap_or(0);
            let at = Timestamp::from_micros(days * 86_400_000_000);
            let bytes = u128::from(self.next()) << 64 | u128::from(self.next());
            ids.extend([
                fresh,
                EventId::derived(fresh, "testkit", 1),
                EventId::from_key(at, &self.0.to_string()),
                EventId::from_bytes(bytes.to_be_bytes()),
            ]);
        }
        ids
    }

    fn request(&mut self, ids: &[EventId]) -> Request {
        let events = match self.below(8) {
            // A few ids in a row, so that whole batches come again.
            0..3 => {
                let first = self.below(ids.len() - 3);
                ids[first..first + self.below(3) + 1].to_vec()
            }
            3 => (0..self.below(4) + 1)
                .map(|_| ids[self.below(ids.len())])
                .collect(),
            _ => vec![ids[self.below(ids.len())]],
        };
        let content = |id: EventId| (usize::from(id.as_bytes()[15]) % 5, 0);
        let mut events: Vec<_> = events.into_iter().map(|id| (id, content(id))).collect();
        if self.below(12) == 0 {
            events[0].1.1 = 1;
        }
        Request {
            events,
            is_refused: self.below(6) == 0,
        }
    }
}

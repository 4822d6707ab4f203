//! Random programs: each part is read out of a number, so that smaller numbers are simpler parts.

use domain_events::{FailurePolicy, Isolation, Ordering, Urgency};
use proptest::{collection::vec, prelude::*};

use super::program::{
    AGGREGATES, Behaviour, Ending, Finish, How, Kind, Program, Raised, Step, Subscriber,
};

/// Programs of up to four subscribers and three clients.
pub fn programs() -> impl Strategy<Value = Program> {
    let subscriber = (any::<u32>(), vec(any::<u16>(), 1..6));
    let clients = vec(vec(any::<u32>(), 1..10), 1..4);
    let parts = (any::<u32>(), vec(subscriber, 1..5), clients);
    parts.prop_map(|(frame, subscribers, clients)| {
        let mut frame = Choice(frame);
        let aggregates = 1 + frame.below(AGGREGATES as u32);
        let many = subscribers.len();
        Program {
            capacity: 1 + frame.below(8) as usize,
            workers: 1 + frame.below(4) as usize,
            ending: match frame.below(4) {
                0..=2 => Ending::Settle,
                _ => Ending::Stop {
                    after: frame.below(60),
                    deadline: frame.below(60),
                },
            },
            subscribers: subscribers
                .into_iter()
                .map(|(word, script)| subscriber_of(Choice(word), &script))
                .collect(),
            clients: clients
                .into_iter()
                .map(|words| steps(&words, aggregates, many))
                .collect(),
        }
    })
}

/// Choices out of one number.
struct Choice(u32);

impl Choice {
    fn below(&mut self, limit: u32) -> u32 {
        let chosen = self.0 % limit;
        self.0 /= limit;
        chosen
    }

    fn kind(&mut self) -> Kind {
        [Kind::Opened, Kind::Moved, Kind::Closed][self.below(3) as usize]
    }

    fn raised(&mut self, aggregates: u32) -> Raised {
        Raised {
            aggregate: self.below(aggregates) as u8,
            kind: self.kind(),
            urgency: [Urgency::Normal, Urgency::High, Urgency::Low][self.below(3) as usize],
        }
    }
}

fn subscriber_of(mut word: Choice, script: &[u16]) -> Subscriber {
    let wants = match word.below(5) {
        0 | 1 => None,
        _ => Some(word.kind()),
    };
    let ordering = match word.below(6) {
        0..=3 => Ordering::PerAggregate,
        4 => Ordering::Total,
        _ => Ordering::None,
    };
    let policy = match word.below(4) {
        2 if ordering == Ordering::PerAggregate => FailurePolicy::ParkAggregate,
        3 => FailurePolicy::PauseSubscription,
        _ => FailurePolicy::Skip,
    };
    let total = ordering == Ordering::Total;
    let isolation = match word.below(4) {
        0 | 1 => None,
        more => Some(Isolation {
            workers: (!total).then(|| 1 + word.below(3) as usize),
            capacity: (more == 3).then(|| 1 + word.below(4) as usize),
        }),
    };
    let attempts = 1 + word.below(3);
    let priority = word.below(3) as i32;
    let passes_over = (word.below(6) == 5).then_some(0);
    let is_late = word.below(6) == 5;
    Subscriber {
        wants,
        policy,
        ordering,
        isolation,
        attempts,
        priority,
        passes_over,
        is_late,
        script: script
            .iter()
            .map(|&word| behaviour(Choice(word.into())))
            .collect(),
    }
}

fn behaviour(mut word: Choice) -> Behaviour {
    let (publishes, end) = match word.below(16) {
        6 | 7 => (0, Finish::Fail),
        8 => (0, Finish::FailForGood),
        9 => (0, Finish::RetryAfter([0, 1, 40][word.below(3) as usize])),
        10 => (0, Finish::Skip),
        11 => (0, Finish::Panic),
        12 => (0, Finish::Hang),
        13 => (1 + word.below(3) as u8, Finish::Fail),
        14 | 15 => (1 + word.below(3) as u8, Finish::Handle),
        _ => (0, Finish::Handle),
    };
    Behaviour {
        publishes,
        end,
        yields: word.below(4) as u8,
        rests: [0, 0, 5, 20][word.below(4) as usize],
        as_batch: word.below(2) == 1,
    }
}

fn steps(words: &[u32], aggregates: u32, subscribers: usize) -> Vec<Step> {
    let step = |&word: &u32| step(Choice(word), aggregates, subscribers as u32);
    words.iter().map(step).collect()
}

fn step(mut word: Choice, aggregates: u32, subscribers: u32) -> Step {
    let what = word.below(24);
    if what < 12 {
        let how = match word.below(8) {
            0..=3 => How::Wait,
            4 | 5 => How::Try,
            6 => How::Timeout(word.below(40)),
            _ => How::DropAfter(word.below(4) as u8),
        };
        return Step::Publish(how, vec![word.raised(aggregates)]);
    }
    if what == 12 || what == 13 {
        let how = match word.below(4) {
            3 => How::DropAfter(word.below(4) as u8),
            _ => How::Wait,
        };
        let count = 2 + word.below(3);
        let events = (0..count).map(|_| word.raised(aggregates)).collect();
        return Step::Publish(how, events);
    }
    let amount = word.below(60);
    let one = word.below(subscribers) as usize;
    match what {
        14 => Step::Yield(1 + amount as u8 % 5),
        15 | 16 => Step::Pass(1 + amount),
        17 => Step::Pause(one),
        18 => Step::Resume(one),
        19 => Step::Replay(one),
        20 => Step::Discard(one),
        21 if amount < 30 => Step::WaitIdle,
        21 => Step::AskReceipt,
        22 => Step::Subscribe(one),
        _ if amount < 40 => Step::Resume(one),
        _ => Step::Unsubscribe(one),
    }
}

//! Names that somebody registers, resets or forgets at this moment: each is one's alone, so that what
//! the store knows of it and what the bus does about it stay the same.

use std::sync::Arc;

use crate::{engine::Engine, inside, state::State};

/// Names that are one's own until this is dropped.
pub(crate) struct Claim {
    engine: Arc<Engine>,
    names: Vec<Arc<str>>,
}

impl Claim {
    /// Waits until nobody has claimed one of the names and nobody of them is on its way off. `None` from
    /// inside a handler, whose own end may be waited for.
    pub(crate) async fn of(engine: &Arc<Engine>, names: Vec<Arc<str>>) -> Option<Self> {
        let are_free = |state: &State| names.iter().all(|name| state.is_free(name));
        loop {
            let claimed = engine.step(|state, _| {
                let claimed = are_free(state);
                if claimed {
                    state.claims.extend(names.iter().cloned());
                }
                claimed
            });
            if claimed {
                break;
            }
            if inside::is_inside(engine.id) {
                return None;
            }
            engine.until_quiet(are_free).await;
        }
        let engine = Arc::clone(engine);
        Some(Self { engine, names })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.engine.step(|state, after| {
            state.claims.retain(|claimed| !self.names.contains(claimed));
            after.quiet = true;
        });
    }
}

impl State {
    fn is_free(&self, name: &str) -> bool {
        !self.is_claimed(name) && !self.is_leaving(name)
    }

    /// Whether somebody registers, resets or forgets the name at this moment.
    pub(crate) fn is_claimed(&self, name: &str) -> bool {
        self.claims.iter().any(|claimed| **claimed == *name)
    }
}

/// Waits until nobody claims a name, except from inside a handler, whose own end may be waited for.
pub(crate) async fn until_settled(engine: &Engine, name: &str) {
    let is_inside = inside::is_inside(engine.id);
    engine
        .until_quiet(|state| is_inside || !state.is_claimed(name))
        .await;
}

//! Names that somebody registers, resets or forgets at this moment: each is one's alone, so that what
//! the store knows of it and what the bus does about it stay the same.

use std::sync::Arc;

use crate::{engine::Engine, inside, state::State};

/// A name that is one's own until this is dropped.
pub(crate) struct Claim {
    engine: Arc<Engine>,
    name: Arc<str>,
}

impl Claim {
    /// Waits until nobody has the name and nobody of it is on its way off. `None` from inside a
    /// handler, whose own end may be waited for.
    pub(crate) async fn of(engine: &Arc<Engine>, name: &Arc<str>) -> Option<Self> {
        loop {
            let claimed = engine.step(|state, _| state.claim(name));
            if claimed {
                return Some(Self {
                    engine: Arc::clone(engine),
                    name: Arc::clone(name),
                });
            }
            if inside::is_inside(engine.id) {
                return None;
            }
            engine.until_quiet(|state| state.is_free(name)).await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.engine.step(|state, after| {
            state.claims.retain(|claimed| *claimed != self.name);
            after.quiet = true;
        });
    }
}

impl State {
    fn claim(&mut self, name: &Arc<str>) -> bool {
        let is_free = self.is_free(name);
        if is_free {
            self.claims.push(Arc::clone(name));
        }
        is_free
    }

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

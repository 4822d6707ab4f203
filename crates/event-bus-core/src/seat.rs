//! Where each worker of a pipeline says what it runs: in a place of its own, as a place that workers
//! share would be passed between their processors with every attempt.

use std::sync::{Arc, atomic::Ordering};

use domain_events::{BatchPolicy, Cancellation, HandlerPublisher};

use crate::{engine::Engine, pipeline::PipelineId, publish::FromHandlers, sync::AtomicUsize};

/// A worker's seat; as far from the next one as processors fetch memory at a time.
#[repr(align(128))]
#[derive(Default)]
pub(crate) struct Seat {
    /// The number of the subscription it is at; 0 where it is at none.
    at: AtomicUsize,
    /// How many deliveries the handler that runs is at.
    attempting: AtomicUsize,
}

/// The seats of a pipeline.
pub(crate) type Seats = Arc<[Seat]>;

/// A worker: its pipeline, and its seat there.
pub(crate) struct Worker {
    pub(crate) pipeline: PipelineId,
    pub(crate) number: usize,
    pub(crate) seats: Seats,
    /// How the batches of the pipeline are made up, where it makes up any.
    pub(crate) batch: Option<BatchPolicy>,
    /// How the handlers that it runs publish.
    pub(crate) publisher: Arc<dyn HandlerPublisher>,
    /// That of its last attempt, to be used again where nobody holds it.
    spare: std::sync::Mutex<Cancellation>,
}

impl Worker {
    /// The workers of a pipeline.
    pub(crate) fn all(
        engine: &Arc<Engine>,
        pipeline: PipelineId,
        seats: &Seats,
    ) -> impl Iterator<Item = Self> {
        let batch = engine.look(|state| state.pipelines.get(pipeline)?.batch);
        (0..seats.len()).map(move |number| Self {
            pipeline,
            number,
            batch,
            seats: Arc::clone(seats),
            publisher: Arc::new(FromHandlers(engine.weak())),
            spare: std::sync::Mutex::default(),
        })
    }

    /// That of a new attempt.
    pub(crate) fn cancellation(&self) -> Cancellation {
        let mut spare = self
            .spare
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        spare.renew();
        spare.clone()
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.seats[self.number]
    }
}

impl Seat {
    /// Says that the worker is at a subscription. Ordered before whatever it looks at next, and
    /// seen by whoever looks here after having changed that.
    pub(crate) fn take_up(&self, subscription: usize) {
        self.at.store(subscription, Ordering::SeqCst);
    }

    pub(crate) fn put_down(&self) {
        self.at.store(0, Ordering::SeqCst);
    }

    pub(crate) fn is_at(&self, subscription: usize) -> bool {
        self.at.load(Ordering::SeqCst) == subscription
    }

    pub(crate) fn set_attempting(&self, deliveries: usize) {
        self.attempting.store(deliveries, Ordering::Release);
    }

    pub(crate) fn is_attempting(&self) -> bool {
        self.attempting() > 0
    }

    /// How many deliveries are being attempted.
    pub(crate) fn attempting(&self) -> usize {
        self.attempting.load(Ordering::Acquire)
    }
}

//! What a subscription does with an event, whatever the types of the event and of the handler: the
//! one place where they are erased.

use std::{any::Any, fmt, sync::Arc, time::Instant};

use crate::{
    Batch, BatchVerdicts, BoxFuture, Cancellation, DecodeError, DomainEvent, Event, EventEnvelope,
    HandlerContext, HandlerError, transactional,
};

/// How an attempt is made; for buses.
pub enum Work {
    /// By polling this future.
    Async(BoxFuture<'static, Result<(), HandlerError>>),
    /// By calling this where a thread may block.
    Blocking(Box<dyn FnOnce() -> Result<(), HandlerError> + Send>),
    /// By calling this in a transaction of the store, with its connection; once more in another one,
    /// where that is not committed (R7).
    Transactional(TransactionalWork),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Async(_) => "Async",
            Self::Blocking(_) => "Blocking",
            Self::Transactional(_) => "Transactional",
        })
    }
}

/// A handler's work in a transaction, given the connection of the store.
pub type TransactionalWork =
    Arc<dyn Fn(&mut dyn Any, CallAgain) -> Result<(), HandlerError> + Send + Sync>;

/// What is known of a call that is made in a transaction, and not of another one of the same attempt.
#[derive(Clone, Debug)]
pub struct CallAgain {
    /// When it counts as failed if it has not ended.
    pub deadline: Option<Instant>,
    /// Whether it is given up.
    pub cancellation: Cancellation,
}

/// The results of a batch, one for each of its events.
pub type BatchResults = Vec<Result<(), HandlerError>>;

type Call = dyn Fn(Arc<EventEnvelope>, HandlerContext) -> Result<Work, DecodeError> + Send + Sync;
type Items = Vec<(Arc<EventEnvelope>, HandlerContext)>;
type BatchCall =
    dyn Fn(Items) -> Result<BoxFuture<'static, BatchResults>, DecodeError> + Send + Sync;

/// A handler, its types erased.
#[derive(Clone)]
pub(crate) enum Erased {
    One(Arc<Call>),
    /// Of up to so many events at a time.
    Batch(Arc<BatchCall>, usize),
}

impl Erased {
    /// A handler that is polled.
    pub(crate) fn future<E: DomainEvent>(
        handler: impl Fn(Event<E>, HandlerContext) -> BoxFuture<'static, Result<(), HandlerError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self::one(move |event, cx| Work::Async(handler(event, cx)))
    }

    /// A handler of events of one type.
    pub(crate) fn one<E: DomainEvent>(
        work: impl Fn(Event<E>, HandlerContext) -> Work + Send + Sync + 'static,
    ) -> Self {
        let call =
            move |envelope: Arc<EventEnvelope>, cx| Ok(work(envelope.into_typed::<E>()?, cx));
        Self::One(Arc::new(call))
    }

    /// A handler of envelopes, which are not decoded.
    pub(crate) fn raw(
        handler: impl Fn(Arc<EventEnvelope>, HandlerContext) -> Work + Send + Sync + 'static,
    ) -> Self {
        Self::One(Arc::new(move |envelope, cx| Ok(handler(envelope, cx))))
    }

    /// A handler of envelopes in a transaction of the store.
    pub(crate) fn transactional<C: 'static>(
        handler: impl Fn(&Arc<EventEnvelope>, &mut C, &HandlerContext) -> Result<(), HandlerError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let handler = Arc::new(handler);
        Self::raw(move |envelope, cx| {
            let handler = Arc::clone(&handler);
            let work = move |conn: &mut dyn Any, call: CallAgain| {
                let cx = cx.again(call);
                handler(&envelope, transactional::connection(conn)?, &cx)
            };
            Work::Transactional(Arc::new(work))
        })
    }

    /// A handler of several events at a time.
    pub(crate) fn batch<E: DomainEvent>(
        handler: impl Fn(Batch<E>) -> BoxFuture<'static, Result<BatchVerdicts, HandlerError>>
        + Send
        + Sync
        + 'static,
        size: usize,
    ) -> Self {
        let call = move |items: Items| {
            let count = items.len();
            let typed =
                |(envelope, cx): (Arc<EventEnvelope>, _)| Ok((envelope.into_typed::<E>()?, cx));
            let items = items.into_iter().map(typed);
            let handling = handler(Batch::new(items.collect::<Result<_, DecodeError>>()?));
            let results = async move { results(handling.await, count) };
            Ok(Box::pin(results) as BoxFuture<'static, BatchResults>)
        };
        Self::Batch(Arc::new(call), size)
    }

    /// Begins to handle one event; a handler of several gets it alone.
    pub(crate) fn call(
        &self,
        envelope: Arc<EventEnvelope>,
        cx: HandlerContext,
    ) -> Result<Work, DecodeError> {
        match self {
            Self::One(call) => call(envelope, cx),
            Self::Batch(call, _) => {
                let handling = call(vec![(envelope, cx)])?;
                let only = async move { handling.await.pop().unwrap_or(Ok(())) };
                Ok(Work::Async(Box::pin(only)))
            }
        }
    }

    /// Begins to handle several events; `None` for a handler of one at a time.
    pub(crate) fn call_batch(
        &self,
        items: Items,
    ) -> Option<Result<BoxFuture<'static, BatchResults>, DecodeError>> {
        match self {
            Self::One(_) => None,
            Self::Batch(call, _) => Some(call(items)),
        }
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(one), Self::One(other)) => Arc::ptr_eq(one, other),
            (Self::Batch(one, _), Self::Batch(other, _)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// One result an event, where one for all may have been given.
fn results(verdicts: Result<BatchVerdicts, HandlerError>, count: usize) -> BatchResults {
    match verdicts {
        Ok(verdicts) => verdicts.into_results(count),
        Err(error) => error.on_all(count).map(Err).collect(),
    }
}

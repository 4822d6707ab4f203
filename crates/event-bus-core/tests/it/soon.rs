//! Waiting for what must come, by signals and turns, and failing where it does not.

use std::{pin::pin, task::Poll, time::Duration};

use tokio::{task::yield_now, time::timeout};

/// What `what` comes to.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what)
        .await
        .expect("did not come within 30 s")
}

/// Lets others run until something holds.
pub(crate) async fn until(holds: impl Fn() -> bool) {
    let held = async {
        while !holds() {
            yield_now().await;
        }
    };
    soon(held).await;
}

/// Polls once. Returns whether there is nothing yet.
pub(crate) async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(pin!(&mut *future).poll(cx).is_pending())).await
}

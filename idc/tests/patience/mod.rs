//! Limits that do not depend on how busy the machine is.

use embassy_time::Timer;
use futures_util::future::{Either, select};
use std::pin::pin;

/// Waits for something, at most for so many milliseconds. While the whole program is stopped, they
/// do not pass, and all tasks have their turns in each ten of them.
pub async fn within<F: Future>(millis: u64, wanted: F) -> Option<F::Output> {
    let pass = async {
        for _ in 0..millis / 10 {
            Timer::after_millis(10).await;
        }
    };
    match select(pin!(wanted), pin!(pass)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

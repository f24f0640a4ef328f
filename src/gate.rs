//! Futures of one task that are polled only when they themselves were woken.
//!
//! All futures of a task share its waker. Without more, a task polls each of them whenever one can go on. To go through
//! the tables of an idle HTTP/2 connection takes a thousand instructions, and to ask three timers and notifications as
//! many.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::{ArcWake, AtomicWaker, WakerRef, waker_ref};
use pin_project_lite::pin_project;

/// Wakes a task, and remembers which of its futures asked for it.
#[derive(Debug)]
pub struct WakeFlag {
    raised: AtomicBool,
    task: AtomicWaker,
}

impl WakeFlag {
    /// The flag of a future that has not been polled yet: it is raised.
    pub fn raised() -> Arc<Self> {
        Arc::new(Self { raised: true.into(), task: AtomicWaker::new() })
    }

    /// Raises the flag for the next poll, without waking the task.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Release);
    }

    /// Lets the flag wake the task of `cx` from now on. Call this first in each poll.
    pub fn belong_to(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
    }

    /// Lowers the flag. Returns whether it was raised.
    pub fn lower(&self) -> bool {
        self.raised.swap(false, Ordering::Acquire)
    }

    /// A waker that raises the flag and wakes the task.
    pub fn waker(self: &Arc<Self>) -> WakerRef<'_> {
        waker_ref(self)
    }
}

impl ArcWake for WakeFlag {
    fn wake_by_ref(flag: &Arc<Self>) {
        flag.raise();
        flag.task.wake();
    }
}

pin_project! {
    /// Polls a future when it was woken, and not when the task was woken for another reason.
    #[derive(Debug)]
    pub struct Gate<F> {
        #[pin]
        inner: F,
        flag: Arc<WakeFlag>,
    }
}

impl<F: Future> Gate<F> {
    /// Wraps `inner`.
    pub fn new(inner: F) -> Self {
        Self { inner, flag: WakeFlag::raised() }
    }
}

impl<F: Future> Future for Gate<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.flag.belong_to(cx);
        match this.flag.lower() {
            true => this.inner.poll(&mut Context::from_waker(&this.flag.waker())),
            false => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::atomic::AtomicUsize, task::Waker};

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn a_future_is_polled_when_it_was_woken_and_wakes_its_task() {
        let (polls, inner) = (AtomicUsize::new(0), Mutex::new(None::<Waker>));
        let task = WakeFlag::raised();
        let waker = task.waker();
        let cx = &mut Context::from_waker(&waker);
        let mut gate = pin!(Gate::new(std::future::poll_fn(|cx| {
            *inner.lock() = Some(cx.waker().clone());
            match polls.fetch_add(1, Ordering::Relaxed) {
                0 => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })));
        assert!(gate.as_mut().poll(cx).is_pending());
        assert!(gate.as_mut().poll(cx).is_pending());
        assert_eq!(polls.load(Ordering::Relaxed), 1, "nobody woke it");
        assert!(task.lower());
        inner.lock().take().expect("polled").wake();
        assert!(task.lower(), "the task was woken");
        assert!(gate.as_mut().poll(cx).is_ready());
    }
}

//! An executor whose time the input controls. Tasks run until all of them wait.

use embassy_time::{Duration, MockDriver};
use futures_executor::{LocalPool, LocalSpawner};
use futures_util::task::LocalSpawnExt;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;

/// How often tasks may be polled before all of them wait. More polls mean that tasks keep each
/// other busy endlessly, or that a peer keeps them busy for too long.
const POLLS: usize = 50_000;

pub struct Tasks {
    pool: LocalPool,
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    polls: Cell<usize>,
    unfinished: Cell<usize>,
}

/// Starts tasks.
#[derive(Clone)]
pub struct Spawner {
    spawner: LocalSpawner,
    state: Rc<State>,
}

impl Tasks {
    /// No tasks; resets the clock.
    pub fn new() -> Tasks {
        MockDriver::get().reset();
        Tasks { pool: LocalPool::new(), state: Rc::default() }
    }

    pub fn spawner(&self) -> Spawner {
        Spawner { spawner: self.pool.spawner(), state: self.state.clone() }
    }

    /// Runs the tasks until all of them wait.
    pub fn run(&mut self) {
        self.state.polls.set(0);
        self.pool.run_until_stalled();
    }

    /// Advances the clock and runs the tasks.
    pub fn pass(&mut self, time: Duration) {
        MockDriver::get().advance(time);
        self.run();
    }

    /// The number of tasks that have not ended, without the endless ones.
    pub fn unfinished(&self) -> usize {
        self.state.unfinished.get()
    }
}

impl Spawner {
    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let state = self.state.clone();
        state.unfinished.set(state.unfinished.get() + 1);
        self.spawn_endless(async move {
            task.await;
            state.unfinished.set(state.unfinished.get() - 1);
        });
    }

    /// Starts a task that may never end.
    pub fn spawn_endless(&self, task: impl Future<Output = ()> + 'static) {
        let state = self.state.clone();
        let counted = async move {
            let mut task = pin!(task);
            poll_fn(|cx| {
                state.polls.set(state.polls.get() + 1);
                assert!(state.polls.get() < POLLS, "the tasks do not come to rest");
                task.as_mut().poll(cx)
            })
            .await;
        };
        self.spawner.spawn_local(counted).expect("the pool exists");
    }
}

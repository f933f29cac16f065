//! What the node's applications do, and an honest pair.

use super::{QUOTA, Reached, Transport};
use crate::tasks::Spawner;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use idc::{Courier, Endpoint, Event, Events, LocalBuffer, Node, RemoteBuffer};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use xen::WaitList;

/// What the node's application has done.
#[derive(Default)]
pub(super) struct Done {
    pub(super) reached: Cell<Reached>,
    pub(super) submitted: Cell<usize>,
    pub(super) completed: Cell<usize>,
    /// What the honest pair has done.
    pub(super) exchanges: Cell<usize>,
}

impl Done {
    pub(super) fn reach(&self, change: impl FnOnce(&mut Reached)) {
        let mut reached = self.reached.get();
        change(&mut reached);
        self.reached.set(reached);
    }
}

/// What the courier is to do.
#[derive(Default)]
pub(super) struct Jobs {
    pub(super) waiting: RefCell<VecDeque<(RemoteBuffer, bool, usize)>>,
    pub(super) changed: WaitList,
    /// Whether the present one is given up.
    pub(super) given_up: Cell<bool>,
    pub(super) over: Cell<bool>,
}

/// Lets an honest node visit the node, over and over.
pub(super) fn exchange(
    spawner: &Spawner,
    node: &Node<Transport>,
    honest: &Node<Transport>,
    done: Rc<Done>,
) {
    let end = |node: &Node<Transport>, address: &str| {
        let resource = node.resource(QUOTA).expect("there is memory");
        let (endpoint, events, drive) =
            Endpoint::create(resource, address.parse().expect("an address"));
        spawner.spawn_endless(drive.map(drop));
        (endpoint, events)
    };
    // Hostile ends may come first, or between two visits.
    let (_, mut served) = end(node, "any/honest");
    spawner.spawn_endless(async move {
        while let Some(event) = served.next().await {
            if let Event::Transaction(asked) = event {
                let parameters = asked.parameters().slice(0..asked.parameters().len().min(50));
                let _ = asked.complete(7, parameters);
            }
        }
    });
    let (endpoint, mut events) = end(honest, "tcp:10.0.0.1:900/honest");
    spawner.spawn_endless(async move {
        while let Some(event) = events.next().await {
            let Event::Connect = event else { continue };
            for number in 0u8.. {
                embassy_time::Timer::after_millis(20).await;
                let Ok(answer) = endpoint.transaction(&[number; 9]).await else { break };
                assert_eq!((answer.error(), answer.status().to_vec()), (7, vec![number; 9]));
                done.exchanges.set(done.exchanges.get() + 1);
            }
        }
    });
}

/// An application, which keeps some of what it receives and submits now and then.
pub(super) struct Application {
    pub(super) endpoint: Endpoint,
    pub(super) spawner: Spawner,
    pub(super) done: Rc<Done>,
}

impl Application {
    pub(super) async fn run(self, events: Events) {
        let kept = RefCell::default();
        let release = async {
            loop {
                embassy_time::Timer::after_millis(30).await;
                drop(kept.take());
            }
        };
        select(pin!(self.work(events, &kept)), pin!(release)).await;
    }

    async fn work(&self, mut events: Events, kept: &RefCell<Vec<Event>>) {
        let (mut count, mut former) = (0u32, "Disappear");
        while let Some(event) = events.next().await {
            let (now, after): (_, &[&str]) = match &event {
                Event::Appear => ("Appear", &["Disappear"]),
                Event::Connect => ("Connect", &["Appear", "Disconnect"]),
                Event::Message(_) | Event::Transaction(_) => ("Connect", &["Connect"]),
                Event::Disconnect(_) => ("Disconnect", &["Connect"]),
                Event::Disappear => ("Disappear", &["Appear", "Disconnect"]),
            };
            assert!(after.contains(&former), "{event:?} after {former}");
            former = now;
            count += 1;
            match event {
                Event::Connect => {
                    self.done.reach(|reached| reached.connections += 1);
                    (0..5).for_each(|number| self.submit(number));
                }
                Event::Message(_) | Event::Transaction(_) => {
                    self.done.reach(|reached| reached.received += 1);
                    self.submit(count);
                    match event {
                        kept_for_a_while if count.is_multiple_of(3) => {
                            kept.borrow_mut().push(kept_for_a_while);
                            let most = usize::from(QUOTA.messages + QUOTA.transactions);
                            assert!(kept.borrow().len() <= most, "the quota is exceeded");
                        }
                        Event::Transaction(asked) => drop(asked.complete(count, vec![7; 20])),
                        _ => {}
                    }
                }
                Event::Disconnect(_) => drop(kept.take()),
                Event::Appear | Event::Disappear => {}
            }
        }
        assert_eq!(former, "Disappear");
    }

    fn submit(&self, number: u32) {
        let (endpoint, done) = (self.endpoint.clone(), self.done.clone());
        // Who waits for slots takes memory, which is the application's business.
        if done.submitted.get() > done.completed.get() + 20 {
            return;
        }
        done.submitted.set(done.submitted.get() + 1);
        self.spawner.spawn(async move {
            let body = vec![1; number as usize % 120];
            let is_answered = match number % 3 {
                0 => endpoint.message(body).await.is_ok(),
                1 => endpoint.transaction(body).await.is_ok_and(|answer| {
                    assert!(answer.status().len() <= QUOTA.status as usize);
                    true
                }),
                _ => match endpoint.try_message(body.into()) {
                    // It is sent, though nobody waits.
                    Some(_) | None => false,
                },
            };
            done.completed.set(done.completed.get() + 1);
            done.reach(|reached| reached.answered += usize::from(is_answered));
        });
    }
}

/// The user of a courier.
pub(super) async fn carry(mut courier: Courier, jobs: Rc<Jobs>, done: Rc<Done>) {
    loop {
        let next = || {
            let job = jobs.waiting.borrow_mut().pop_front();
            if jobs.over.get() { Some(None) } else { job.map(Some) }
        };
        let Some((remote, receives, len)) = jobs.changed.until(next).await else { return };
        jobs.given_up.set(false);
        let local = LocalBuffer::new(len);
        let transfer = async {
            if receives {
                courier.receive(&remote, 0, &local).await
            } else {
                courier.send(&remote, 0, &local).await
            }
        };
        let given_up = jobs.changed.until(|| jobs.given_up.get().then_some(()));
        if let Either::Left((Ok(()), _)) = select(pin!(transfer), pin!(given_up)).await {
            done.reach(|reached| reached.transfers += 1);
        }
    }
}

//! The end that measures.

use super::ring::{self, Op, Ring};
use super::{BUFFER, MESSAGE, PIECE, Plan, QUOTA, Used, link_beside};
use crate::address::Address;
use crate::buffer::{Courier, LocalBuffer, RemoteBuffer};
use crate::endpoint::{Endpoint, Event, Events};
use crate::node::Node;
use crate::quota::Quota;
use crate::transport::{LinkReader, LinkWriter, Transport};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Display, Formatter};
use core::pin::pin;
use embassy_time::{Duration, Instant, with_timeout};
use futures_util::future::{Either, join, select};
use futures_util::stream::{StreamExt, TryStreamExt, iter};

/// How long the other end may take to appear.
const PATIENCE: Duration = Duration::from_secs(60);

/// The rounds of each measurement, in which the ways take turns.
const ROUNDS: usize = 10;

/// The round trips before those that are measured.
const WARM_UP: usize = 50;

const MIB: usize = 1 << 20;

/// What went wrong, as a text.
type Outcome<T = ()> = Result<T, String>;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A link alone.
    Ring,
    /// Endpoints and couriers.
    Idc,
}

const WAYS: [Way; 2] = [Way::Ring, Way::Idc];

impl Display for Way {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Ring => "ring",
            Way::Idc => "idc",
        })
    }
}

/// Measures what [`serve`](super::serve)s at an address. `print` gets figures: their names,
/// which end in their units, and values. `used` tells what this end has used up.
pub async fn visit<T: Transport>(
    node: &Node<T>,
    address: &Address,
    plan: Plan,
    used: impl Fn() -> Used,
    print: impl Fn(Way, &str, f64),
) -> Outcome {
    let resource = node.resource(QUOTA).map_err(text)?;
    let (endpoint, events, drive) = Endpoint::create(resource, address.clone());
    let (courier, carry) = Courier::create(node.resource(Quota::default()).map_err(text)?);
    let reserve = node.transport().reserve().map_err(text)?;
    let mut meeting = node.transport().meet(&link_beside(address), reserve);
    let work = async {
        let appear = join(ring::meet(node, &mut meeting), connected(events));
        let late = |_| "the other end does not appear".to_string();
        let (link, events) = with_timeout(PATIENCE, appear).await.map_err(late)?;
        let (mut link, _events) = (link.map_err(text)?, events?);
        let ring = Ring::new(&mut link).map_err(text)?;
        let local = LocalBuffer::try_new(BUFFER).map_err(text)?;
        let (server, remote) = state(&endpoint).await?;
        let ends = Ends { ring, endpoint, courier, remote, local };
        let mut visit = Visit { ends, used, print, cost: Sample::default() };
        let before = Sample { server, visitor: (visit.used)() };
        let mut cost = visit.since(&before).await?;
        // The ends may still be connecting, so the least counts.
        for _ in 1..CALIBRATIONS {
            let before = visit.sample().await?;
            let again = visit.since(&before).await?;
            cost.server = cost.server.least(&again.server);
            cost.visitor = cost.visitor.least(&again.visitor);
        }
        visit.cost = cost;
        visit.measure(plan).await
    };
    let driven = join(drive, carry);
    match select(pin!(work), pin!(driven)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Err("the endpoint has ended".to_string()),
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// Waits until the endpoint is connected.
async fn connected(mut events: Events) -> Outcome<Events> {
    while let Some(event) = events.next().await {
        if matches!(event, Event::Connect) {
            return Ok(events);
        }
    }
    Err("the endpoint has ended".to_string())
}

/// What the other end has used up, and its buffer.
async fn state(endpoint: &Endpoint) -> Outcome<(Used, RemoteBuffer)> {
    let answer = endpoint.transaction(LocalBuffer::new(0)).await.map_err(text)?;
    let status = answer.status().to_vec();
    let parts =
        status.split_first_chunk().and_then(|(buffer, used)| Some((buffer, used.first_chunk()?)));
    let (buffer, used) = parts.ok_or("the other end's state is too short")?;
    Ok((Used::from_bytes(*used), RemoteBuffer::from_bytes(buffer).map_err(text)?))
}

/// This end of all that is measured.
struct Ends<R, W> {
    ring: Ring<R, W>,
    endpoint: Endpoint,
    courier: Courier,
    remote: RemoteBuffer,
    local: LocalBuffer,
}

impl<R: LinkReader, W: LinkWriter> Ends<R, W> {
    async fn out(&mut self, way: Way, mib: usize) -> Outcome {
        match way {
            Way::Ring => {
                self.ring.ask(Op::Source, PIECE, mib * MIB).await.map_err(text)?;
                self.ring.receive(PIECE, mib * MIB).await.map_err(text)
            }
            Way::Idc => {
                for piece in pieces(&self.local, mib) {
                    self.courier.receive(&self.remote, 0, &piece).await.map_err(text)?;
                }
                Ok(())
            }
        }
    }

    async fn inward(&mut self, way: Way, mib: usize) -> Outcome {
        match way {
            Way::Ring => self.sink(PIECE, mib * MIB).await,
            Way::Idc => {
                for piece in pieces(&self.local, mib) {
                    self.courier.send(&self.remote, 0, &piece).await.map_err(text)?;
                }
                Ok(())
            }
        }
    }

    async fn round_trips(&mut self, way: Way, count: usize, times: &mut Vec<Duration>) -> Outcome {
        let question = LocalBuffer::new(MESSAGE);
        times.reserve(count);
        if way == Way::Ring {
            self.ring.ask(Op::Echo, MESSAGE, count).await.map_err(text)?;
        }
        let mut since = Instant::now();
        for _ in 0..count {
            match way {
                Way::Ring => {
                    self.ring.send(MESSAGE, MESSAGE).await.map_err(text)?;
                    self.ring.receive(MESSAGE, MESSAGE).await.map_err(text)?;
                }
                Way::Idc => {
                    let answer = self.endpoint.transaction(question.clone()).await;
                    answer.map(drop).map_err(text)?;
                }
            }
            let now = Instant::now();
            times.push(now - since);
            since = now;
        }
        Ok(())
    }

    /// As many at a time as the other end is ready to receive.
    async fn messages(&mut self, way: Way, count: usize) -> Outcome {
        match way {
            Way::Ring => self.sink(MESSAGE, count * MESSAGE).await,
            Way::Idc => {
                let body = LocalBuffer::new(MESSAGE);
                let messages = iter(0..count).map(|_| self.endpoint.message(body.clone()));
                let messages = messages.buffer_unordered(QUOTA.messages.into());
                messages.try_for_each(async |()| Ok(())).await.map_err(text)
            }
        }
    }

    /// Sends bytes through the link, until the other end has them.
    async fn sink(&mut self, size: usize, bytes: usize) -> Outcome {
        self.ring.ask(Op::Sink, size, bytes).await.map_err(text)?;
        self.ring.send(size, bytes).await.map_err(text)?;
        self.ring.receive(1, 1).await.map_err(text)
    }
}

/// The buffer again and again, as many MiB of it.
fn pieces(buffer: &LocalBuffer, mib: usize) -> impl Iterator<Item = LocalBuffer> {
    let starts = (0..mib * MIB).step_by(buffer.len());
    starts.map(move |start| buffer.slice(0..buffer.len().min(mib * MIB - start)))
}

/// How often it is measured what a sample costs.
const CALIBRATIONS: usize = 5;

/// What both ends have used up.
#[derive(Clone, Copy, Default)]
struct Sample {
    server: Used,
    visitor: Used,
}

struct Visit<R, W, U, P> {
    ends: Ends<R, W>,
    used: U,
    print: P,
    /// What a sample itself uses up.
    cost: Sample,
}

/// What is done in a round, and what it is called.
#[derive(Clone, Copy)]
enum Work {
    /// So many MiB from the other end.
    Out(usize),
    /// So many MiB to the other end.
    In(usize),
    RoundTrips(usize),
    Messages(usize),
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::Out(_) => "out",
            Work::In(_) => "in",
            Work::RoundTrips(_) => "round_trip",
            Work::Messages(_) => "message",
        }
    }

    fn count(self) -> usize {
        match self {
            Work::Out(count) | Work::In(count) => count,
            Work::RoundTrips(count) | Work::Messages(count) => count,
        }
    }
}

/// What all rounds of a work gave.
#[derive(Default)]
struct Sum {
    used: Sample,
    /// The times of the rounds, or of the round trips.
    times: Vec<Duration>,
}

impl<R: LinkReader, W: LinkWriter, U: Fn() -> Used, P: Fn(Way, &str, f64)> Visit<R, W, U, P> {
    async fn measure(&mut self, Plan { mib, count }: Plan) -> Outcome {
        for way in WAYS {
            self.ends.round_trips(way, WARM_UP, &mut Vec::new()).await?;
        }
        let mib = mib.div_ceil(ROUNDS);
        let count = count.div_ceil(ROUNDS);
        for work in
            [Work::Out(mib), Work::In(mib), Work::RoundTrips(count), Work::Messages(10 * count)]
        {
            let mut sums = [Sum::default(), Sum::default()];
            // In turn, so that a disturbance meets both.
            for _ in 0..ROUNDS {
                for (way, sum) in WAYS.into_iter().zip(&mut sums) {
                    self.round(way, work, sum).await?;
                }
            }
            for (way, sum) in WAYS.into_iter().zip(sums) {
                self.report(way, work, sum);
            }
        }
        Ok(())
    }

    async fn round(&mut self, way: Way, work: Work, sum: &mut Sum) -> Outcome {
        let before = self.sample().await?;
        let start = Instant::now();
        match work {
            Work::Out(mib) => self.ends.out(way, mib).await?,
            Work::In(mib) => self.ends.inward(way, mib).await?,
            Work::RoundTrips(count) => self.ends.round_trips(way, count, &mut sum.times).await?,
            Work::Messages(count) => self.ends.messages(way, count).await?,
        }
        if !matches!(work, Work::RoundTrips(_)) {
            sum.times.push(start.elapsed());
        }
        let used = self.since(&before).await?;
        sum.used.server.add(&used.server.since(&self.cost.server));
        sum.used.visitor.add(&used.visitor.since(&self.cost.visitor));
        Ok(())
    }

    /// Prints the medians, and what was used up.
    fn report(&self, way: Way, work: Work, Sum { used, mut times }: Sum) {
        times.sort_unstable();
        let time = |percent| seconds(times[times.len() * percent / 100]);
        let (name, count) = (work.name(), work.count() as f64);
        let print = |name: &str, value| (self.print)(way, name, value);
        let (of_cpu, of_counts) = match work {
            Work::Out(_) | Work::In(_) => {
                print(&format!("{name}_mib_per_s"), count / time(50));
                (("s_per_gib", 1024.0), "per_mib")
            }
            Work::RoundTrips(_) => {
                print("round_trip_us", time(50) * 1e6);
                print("round_trip_p99_us", time(99) * 1e6);
                (("ms_each", 1e3), "each")
            }
            Work::Messages(_) => {
                print("messages_per_s", count / time(50));
                (("ms_each", 1e3), "each")
            }
        };
        let all = count * ROUNDS as f64;
        for (end, used) in [("guest", used.server), ("client", used.visitor)] {
            let (unit, factor) = of_cpu;
            let cpu = used.cpu.as_secs_f64() * factor / all;
            print(&format!("{name}_{end}_cpu_{unit}"), cpu);
            for (what, number) in
                [("hypercalls", used.hypercalls), ("notifications", used.notifications)]
            {
                print(&format!("{name}_{end}_{what}_{of_counts}"), number as f64 / all);
            }
        }
    }

    async fn sample(&self) -> Outcome<Sample> {
        let (server, _) = state(&self.ends.endpoint).await?;
        Ok(Sample { server, visitor: (self.used)() })
    }

    async fn since(&self, before: &Sample) -> Outcome<Sample> {
        let visitor = (self.used)().since(&before.visitor);
        let (server, _) = state(&self.ends.endpoint).await?;
        Ok(Sample { server: server.since(&before.server), visitor })
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}

//! An iperf3 server that receives datagrams of one stream: `iperf3 -c HOST -p PORT -u`.
//!
//! A test begins with a TCP connection, on which the two ends exchange states, parameters and
//! results in JSON. Each state is one byte, each text has its length in front. Numbers are those of
//! iperf3's `iperf_api.h`.

use crate::{any, failed, text};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Display;
use core::pin::pin;
use edge_nal::{TcpAccept, TcpBind, UdpBind, UdpReceive, UdpSend};
use embassy_time::{Duration, Instant, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::{Either, select};

const TEST_START: u8 = 1;
const TEST_RUNNING: u8 = 2;
const TEST_END: u8 = 4;
const PARAM_EXCHANGE: u8 = 9;
const CREATE_STREAMS: u8 = 10;
const EXCHANGE_RESULTS: u8 = 13;
const DISPLAY_RESULTS: u8 = 14;

/// The bytes by which a client names its test.
const COOKIE: usize = 37;
/// The longest text of a client.
const LONGEST_TEXT: usize = 64 << 10;
/// The longest datagram.
const LONGEST: usize = 65_507;
/// The answer to the datagram that opens a stream.
const REPLY: [u8; 4] = 0x3938_3736_u32.to_le_bytes();
/// How long datagrams may be on their way after the client has sent its last one.
const LATE: Duration = Duration::from_millis(200);
/// How long a client may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves one test after another. An error of one concerns no other one.
pub async fn serve<S: TcpBind + UdpBind>(stack: &S, port: u16) -> Result<(), String>
where
    <S as TcpBind>::Error: Display,
    <S as UdpBind>::Error: Display,
{
    let acceptor = TcpBind::bind(stack, any(port)).await.map_err(failed("bind"))?;
    let mut socket = UdpBind::bind(stack, any(port)).await.map_err(failed("bind"))?;
    log::info!("iperf3: serving on port {port}");
    loop {
        let (peer, mut control) = acceptor.accept().await.map_err(|_| "cannot accept")?;
        match test(&mut control, &mut socket).await {
            Ok(Count { packets, lost, .. }) => {
                log::info!("iperf3: {peer}: {packets} datagrams, {lost} lost");
            }
            Err(error) => log::warn!("iperf3: {peer}: {error}"),
        }
    }
}

/// What came.
#[derive(Default)]
struct Count {
    packets: u64,
    bytes: u64,
    lost: u64,
    /// The number of the last datagram.
    last: u64,
    /// In microseconds (RFC 3550, section 6.4.1).
    jitter: u64,
    transit: Option<u64>,
}

impl Count {
    /// Waits for a datagram and counts it. Returns false if none comes within this time.
    async fn next(
        &mut self,
        socket: &mut impl UdpReceive<Error: Display>,
        datagram: &mut [u8],
        within: Duration,
    ) -> Result<bool, String> {
        let Ok(received) = with_timeout(within, socket.receive(datagram)).await else {
            return Ok(false);
        };
        let (length, _) = received.map_err(text)?;
        self.add(datagram.get(..length).unwrap_or(&[]), Instant::now());
        Ok(true)
    }

    /// Counts a datagram, which has the time at which it was sent and its number.
    fn add(&mut self, datagram: &[u8], now: Instant) {
        let word = |at| Some(u64::from(u32::from_be_bytes(*datagram.get(at..)?.first_chunk()?)));
        let (Some(seconds), Some(micros), Some(number)) = (word(0), word(4), word(8)) else {
            return;
        };
        self.packets += 1;
        self.bytes += datagram.len() as u64;
        if number > self.last {
            self.lost += number - self.last - 1;
            self.last = number;
        } else {
            // It came after a later one, and counts as lost since.
            self.lost = self.lost.saturating_sub(1);
        }
        let transit = now.as_micros().wrapping_sub(seconds * 1_000_000 + micros);
        let change = transit.wrapping_sub(self.transit.unwrap_or(transit)).cast_signed();
        self.transit = Some(transit);
        self.jitter = self.jitter - self.jitter / 16 + change.unsigned_abs() / 16;
    }

    fn results(&self, seconds: u64) -> String {
        let Count { packets, bytes, lost, jitter, .. } = self;
        format!(
            "{{\"cpu_util_total\":0,\"cpu_util_user\":0,\"cpu_util_system\":0,\
             \"sender_has_retransmits\":0,\"streams\":[{{\"id\":1,\"bytes\":{bytes},\
             \"retransmits\":0,\"jitter\":{}.{:06},\"errors\":{lost},\"omitted_errors\":0,\
             \"packets\":{},\"omitted_packets\":0,\"start_time\":0,\"end_time\":{seconds}}}]}}",
            jitter / 1_000_000,
            jitter % 1_000_000,
            packets + lost,
        )
    }
}

async fn test(
    control: &mut (impl Read + Write),
    socket: &mut (impl UdpReceive<Error: Display> + UdpSend),
) -> Result<Count, String> {
    read::<COOKIE>(control).await?;
    say(control, &[PARAM_EXCHANGE]).await?;
    let parameters = String::from_utf8(hear(control).await?).map_err(text)?;
    let wants = |what: &str| parameters.contains(what);
    if !wants("\"udp\":true") || wants("\"reverse\":true") || !wants("\"parallel\":1,") {
        return Err("only -u of one stream, towards this guest".to_string());
    }
    say(control, &[CREATE_STREAMS]).await?;
    let mut datagram = vec![0; LONGEST];
    let opened = async {
        loop {
            // Those of an earlier test are longer.
            let (length, peer) = socket.receive(&mut datagram).await.map_err(text)?;
            if length == REPLY.len() {
                return socket.send(peer, &REPLY).await.map_err(|_| "cannot reply".to_string());
            }
        }
    };
    with_timeout(PATIENCE, opened).await.map_err(|_| "no stream was opened")??;
    say(control, &[TEST_START, TEST_RUNNING]).await?;

    let (mut count, begin) = (Count::default(), Instant::now());
    let state = {
        let mut state = pin!(read::<1>(control));
        loop {
            let counted = pin!(count.next(socket, &mut datagram, PATIENCE));
            match select(state.as_mut(), counted).await {
                Either::Left((state, _)) => break state?,
                Either::Right((Ok(false), _)) => return Err("no datagram came".to_string()),
                Either::Right((counted, _)) => counted.map(drop)?,
            }
        }
    };
    if state != [TEST_END] {
        return Err(format!("state {state:?} instead of the test's end"));
    }
    while count.next(socket, &mut datagram, LATE).await? {}
    say(control, &[EXCHANGE_RESULTS]).await?;
    hear(control).await?;
    let results = count.results(begin.elapsed().as_secs());
    say(control, &[&(results.len() as u32).to_be_bytes(), results.as_bytes()].concat()).await?;
    say(control, &[DISPLAY_RESULTS]).await?;
    // The client is done.
    read::<1>(control).await?;
    Ok(count)
}

async fn say(control: &mut impl Write, bytes: &[u8]) -> Result<(), String> {
    let written = async {
        control.write_all(bytes).await?;
        control.flush().await
    };
    written.await.map_err(|error| format!("write: {error:?}"))
}

async fn read<const N: usize>(control: &mut impl Read) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    control.read_exact(&mut bytes).await.map_err(|error| format!("read: {error:?}"))?;
    Ok(bytes)
}

/// A text of the client.
async fn hear(control: &mut impl Read) -> Result<Vec<u8>, String> {
    let length = u32::from_be_bytes(read(control).await?) as usize;
    if length > LONGEST_TEXT {
        return Err(format!("a text of {length} bytes"));
    }
    let mut text = vec![0; length];
    control.read_exact(&mut text).await.map_err(|error| format!("read: {error:?}"))?;
    Ok(text)
}

//! The frames of an interface in libpcap's format.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use smoltcp::phy::{Device, PcapLinkType, PcapMode, PcapSink, PcapWriter};
use smoltcp::time::Instant;
use xen::WaitList;

/// The length of a record's header: the time in seconds and microseconds, the record's and the
/// frame's length.
const RECORD_HEADER: usize = 16;

/// A sink of smoltcp's `PcapWriter` that keeps records until they are fetched. While it is full,
/// further frames are lost and counted. Clones are handles to the same capture.
///
/// The format is libpcap's of 1998: draft-gharris-opsawg-pcap-02, sections 4 and 5.
///
/// ```
/// use core::time::Duration;
/// use netfront::Capture;
/// use netfront::smoltcp::phy::{Device, Loopback, Medium, TxToken};
/// use netfront::smoltcp::time::Instant;
///
/// let capture = Capture::new(1 << 20, Duration::ZERO);
/// let mut device = capture.wrap(Loopback::new(Medium::Ethernet));
/// device.transmit(Instant::ZERO).unwrap().consume(60, |frame| frame.fill(7));
///
/// let mut file = Capture::header();
/// file.extend(futures_executor::block_on(capture.next()));
/// assert_eq!(file.len(), 24 + 16 + 60);
/// ```
#[derive(Clone)]
pub struct Capture(Rc<Inner>);

struct Inner {
    records: RefCell<VecDeque<Vec<u8>>>,
    bytes: Cell<usize>,
    lost: Cell<u64>,
    limit: usize,
    epoch: Duration,
    changed: WaitList,
}

impl Capture {
    /// A capture that keeps up to `limit` bytes. `epoch` is the wall-clock time at the stack's time
    /// 0.
    pub fn new(limit: usize, epoch: Duration) -> Self {
        Capture(Rc::new(Inner {
            records: RefCell::default(),
            bytes: Cell::new(0),
            lost: Cell::new(0),
            limit,
            epoch,
            changed: WaitList::default(),
        }))
    }

    /// A device that records the frames of `device` here, in both directions.
    ///
    /// An outgoing frame is recorded as the stack has made it: without the checksums that are
    /// offloaded, and before it is segmented.
    pub fn wrap<D: Device>(&self, device: D) -> PcapWriter<D, Capture> {
        PcapWriter::new(device, self.clone(), PcapMode::Both)
    }

    /// The global header of a capture file.
    pub fn header() -> Vec<u8> {
        struct Plain(Vec<u8>);
        impl PcapSink for Plain {
            fn write(&mut self, data: &[u8]) {
                self.0.extend_from_slice(data);
            }
        }
        let mut header = Plain(Vec::new());
        header.global_header(PcapLinkType::Ethernet);
        header.0
    }

    /// Waits for the next record and removes it.
    pub async fn next(&self) -> Vec<u8> {
        let record = self.0.changed.until(|| self.0.records.borrow_mut().pop_front()).await;
        self.0.bytes.set(self.0.bytes.get() - record.len());
        record
    }

    /// The number of frames lost because the capture was full.
    pub fn lost(&self) -> u64 {
        self.0.lost.get()
    }
}

impl PcapSink for Capture {
    fn write(&mut self, _: &[u8]) {
        unreachable!("`packet` and `global_header` are overridden")
    }

    fn global_header(&mut self, _: PcapLinkType) {}

    fn packet(&mut self, at: Instant, frame: &[u8]) {
        let Inner { records, bytes, lost, limit, epoch, changed } = &*self.0;
        let len = RECORD_HEADER + frame.len();
        if bytes.get() + len > *limit {
            return lost.set(lost.get() + 1);
        }
        let time = *epoch + Duration::from_micros(at.total_micros().max(0) as u64);
        let mut record = Vec::with_capacity(len);
        for field in
            [time.as_secs() as u32, time.subsec_micros(), frame.len() as u32, frame.len() as u32]
        {
            record.extend_from_slice(&field.to_ne_bytes());
        }
        record.extend_from_slice(frame);
        records.borrow_mut().push_back(record);
        bytes.set(bytes.get() + len);
        changed.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_executor::block_on;

    #[test]
    fn records_have_times_lengths_and_frames() {
        let mut capture = Capture::new(1000, Duration::from_secs(1_800_000_000));
        capture.packet(Instant::from_micros(2_000_003), b"a frame");
        let record = block_on(capture.next());
        let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().unwrap());
        assert_eq!([0, 4, 8, 12].map(word), [1_800_000_002, 3, 7, 7]);
        assert_eq!(&record[16..], b"a frame");
        assert_eq!(Capture::header()[..4], 0xa1b2_c3d4u32.to_ne_bytes());
        assert_eq!(Capture::header().len(), 24);
    }

    #[test]
    fn a_full_capture_loses_and_counts_frames_until_records_are_fetched() {
        let mut capture = Capture::new(100, Duration::ZERO);
        for number in 0..10 {
            capture.packet(Instant::ZERO, &[number; 34]);
        }
        assert_eq!(capture.lost(), 8);
        assert_eq!(block_on(capture.next())[16], 0);
        capture.packet(Instant::ZERO, &[10; 34]);
        assert_eq!(block_on(capture.next())[16], 1);
        assert_eq!(block_on(capture.next())[16], 10);
    }
}

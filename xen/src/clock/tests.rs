use super::*;
use crate::testing::page;
use crate::testing::{Done, FakeXen};
use proptest::prelude::*;

fn info(tsc_timestamp: u64, system_time: u64, mul: u32, shift: i8) -> VcpuTimeInfo {
    let tsc_to_system_mul = mul;
    let tsc_shift = shift;
    VcpuTimeInfo { tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, ..Default::default() }
}

#[test]
fn ticks_become_nanoseconds() {
    // 2 GHz: half a nanosecond per tick.
    let two = TimeInfo(info(1000, 50, 1 << 31, 0));
    assert_eq!(two.system_time(1000), 50);
    assert_eq!(two.system_time(1000 + 4_000_000_000), 50 + 2_000_000_000);
    assert_eq!(two.frequency(), 2_000_000_000);
    // 500 MHz: ticks are shifted to the left.
    let half = TimeInfo(info(0, 0, 1 << 31, 2));
    assert_eq!(half.system_time(500), 1000);
    assert_eq!(half.frequency(), 500_000_000);
    // 4 GHz: to the right.
    let four = TimeInfo(info(0, 0, 1 << 31, -1));
    assert_eq!(four.system_time(4000), 1000);
    assert_eq!(four.frequency(), 4_000_000_000);
}

#[test]
fn a_tsc_from_before_the_update_counts_as_the_update() {
    assert_eq!(TimeInfo(info(1000, 50, 1 << 31, 0)).system_time(900), 50);
}

#[test]
fn a_read_during_an_update_is_retried() {
    let page = page();
    let clock = Clock::new(page);
    let mut time = info(0, 777, 1 << 31, 0);
    time.version = 3;
    page.write(TIME, time.as_bytes());
    assert_eq!(clock.time_info(), Err(Errno::EAGAIN));
    assert_eq!(clock.now_by(|| 0), 0);
    page.store_u32(VERSION, 4, Relaxed);
    let mut version = 4;
    let never_still = clock.versioned(VERSION, || {
        version += 2;
        page.store_u32(VERSION, version, Relaxed);
    });
    assert_eq!(never_still, Err(Errno::EAGAIN), "the number of retries is bounded");
    assert_eq!(clock.now_by(|| 20), 787);
    assert_eq!(clock.now_by(|| 10), 787, "time does not go back");
}

#[test]
fn the_clock_of_a_restored_domain_continues_on_any_host() {
    for (before, after) in [(1_000_000, 50), (50, 1_000_000)] {
        let page = page();
        let clock = Clock::new(page);
        page.write(TIME, info(0, before, 1 << 31, 0).as_bytes());
        assert_eq!(clock.now_by(|| 200), before + 100);
        page.write(TIME, info(0, after, 1 << 31, 0).as_bytes());
        clock.resume_by(|| 20);
        assert_eq!(clock.now_by(|| 20), before + 100);
        assert_eq!(clock.now_by(|| 60), before + 120);
        assert_eq!(clock.system_time_of(before + 120), after + 30);
        assert_eq!(clock.system_time_of(0), after.saturating_sub(before + 90));
    }
}

#[test]
fn the_wall_clock_is_the_boot_time_plus_the_system_time() {
    let page = page();
    page.write(WALL, [2u32, 5, 999_999_999, 1].as_bytes());
    let clock = Clock::new(page);
    assert_eq!(clock.wall_clock(1), Ok(Duration::from_secs((1 << 32) + 6)));
    page.store_u32(WALL, 3, Relaxed);
    assert_eq!(clock.wall_clock(1), Err(Errno::EAGAIN));
}

#[test]
fn a_corrected_wall_clock_keeps_its_difference_to_that_of_the_host() {
    let page = page();
    page.write(WALL, [2u32, 1000, 0, 0].as_bytes());
    let (clock, seconds) = (Clock::new(page), |time: u64| Duration::from_secs(time));
    for time in [4000, 1000, 7, 1002] {
        assert_eq!(clock.set_wall_clock(2 * NANOS, seconds(time)), Ok(()));
        assert_eq!(clock.wall_clock(2 * NANOS), Ok(seconds(time)));
        assert_eq!(clock.wall_clock(5 * NANOS), Ok(seconds(time + 3)));
    }
    assert_eq!(clock.set_wall_clock(0, Duration::MAX), Err(Errno::EINVAL));
    assert_eq!(clock.wall_clock(0), Ok(seconds(1000)), "as before");
    // In a restored domain, another host has another clock.
    clock.set_wall_clock(0, seconds(10)).unwrap();
    page.write(WALL, [2u32, 1500, 0, 0].as_bytes());
    assert_eq!(clock.wall_clock(0), Ok(seconds(510)));
}

#[test]
fn the_timer_stops_the_periodic_timer_and_is_set_and_stopped() {
    let xen = FakeXen::new();
    let timer = Timer::new(&xen).unwrap();
    timer.set(123).unwrap();
    timer.set(u64::MAX).unwrap();
    timer.stop().unwrap();
    let last = Done::TimerSet(i64::MAX as u64 / 2);
    assert_eq!(xen.take_done(), [Done::TickStopped, Done::TimerSet(123), last, Done::TimerStopped]);
}

#[test]
fn a_read_is_consistent_while_another_cpu_writes() {
    use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::Arc;
    let page = page();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        let mut n = 0u32;
        while !stopped.load(SeqCst) {
            n = n.wrapping_add(1);
            page.store_u32(VERSION, n.wrapping_mul(2).wrapping_add(1), SeqCst);
            // For a while, half of it belongs to the next value.
            page.store_u64(TIME + offset_of!(VcpuTimeInfo, tsc_timestamp), n.into(), SeqCst);
            page.store_u64(TIME + offset_of!(VcpuTimeInfo, system_time), n.into(), SeqCst);
            page.store_u32(VERSION, n.wrapping_mul(2).wrapping_add(2), SeqCst);
            std::thread::yield_now();
        }
    });
    let clock = Clock::new(page);
    let mut readings = 0;
    let start = std::time::Instant::now();
    while readings < 20_000 && start.elapsed().as_secs() < 60 {
        if let Ok(TimeInfo(info)) = clock.time_info() {
            assert_eq!(info.tsc_timestamp, info.system_time);
            readings += 1;
        }
    }
    stop.store(true, SeqCst);
    writer.join().unwrap();
    assert_eq!(readings, 20_000);
}

proptest! {
    #[test]
    fn no_numbers_make_it_panic(stamp: u64, time: u64, mul: u32, shift: i8, tsc: u64) {
        let info = TimeInfo(info(stamp, time, mul, shift));
        prop_assert!(info.system_time(tsc) >= time);
        info.frequency();
    }

    #[test]
    fn later_ticks_are_never_earlier(
        mul: u32, shift in -31i8..=8, tsc in 0..1u64 << 50, more in 0..1u64 << 40
    ) {
        let info = TimeInfo(info(0, 0, mul, shift));
        prop_assert!(info.system_time(tsc + more) >= info.system_time(tsc));
    }
}

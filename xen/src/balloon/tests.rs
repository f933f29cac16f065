use super::*;
use crate::testing::{Done, FakeXen};
use proptest::prelude::*;
use std::vec::Vec;

fn run(start: u64, count: u64) -> Run {
    Run::new(Gfn(start), count)
}

/// A domain with memory in the first `pages` frames.
fn domain(pages: u64) -> FakeXen {
    let xen = FakeXen::new();
    xen.populated.replace((0..pages).collect());
    xen
}

fn give(balloon: &mut Balloon, xen: &FakeXen, given: Run) -> Result<(), (Errno, Run)> {
    // SAFETY: the fake has no memory behind its frames.
    unsafe { balloon.give(xen, given) }
}

/// Whether the record matches Xen's state of the first `pages` frames.
fn agrees(balloon: &Balloon, xen: &FakeXen, pages: u64) -> bool {
    let absent: Vec<u64> =
        balloon.runs().iter().flat_map(|run| run.start.0..run.start.0 + run.count).collect();
    let populated = xen.populated.borrow();
    absent.len() as u64 == balloon.pages()
        && absent == (0..pages).filter(|frame| !populated.contains(frame)).collect::<Vec<_>>()
}

#[test]
fn memory_is_given_in_large_extents_if_possible_and_taken_lowest_first() {
    let (xen, mut balloon) = (domain(4096), Balloon::new());
    give(&mut balloon, &xen, run(500, 1300)).unwrap();
    assert_eq!(
        xen.take_done(),
        [
            Done::Decreased { start: 500, extents: 12, order: 0 },
            Done::Decreased { start: 512, extents: 2, order: 9 },
            Done::Decreased { start: 1536, extents: 264, order: 0 },
        ]
    );
    assert_eq!((balloon.pages(), balloon.runs()), (1300, &[run(500, 1300)][..]));
    assert_eq!(xen.current_reservation(), Ok(4096 - 1300));

    assert_eq!(balloon.take(&xen, 2000), Ok(run(500, 12)));
    assert_eq!(balloon.take(&xen, 1100), Ok(run(512, 1024)));
    assert_eq!(balloon.take(&xen, 64), Ok(run(1536, 64)));
    assert!(agrees(&balloon, &xen, 4096) && balloon.pages() == 200);
    assert_eq!(balloon.take(&xen, 1000), Ok(run(1600, 200)));
    assert_eq!(balloon.take(&xen, 1), Err(Errno::ENOENT));
    assert_eq!((balloon.pages(), balloon.runs()), (0, &[][..]));
}

#[test]
fn adjacent_runs_are_merged() {
    let (xen, mut balloon) = (domain(100), Balloon::new());
    for given in [run(10, 5), run(30, 5), run(20, 10), run(15, 5), run(9, 1)] {
        give(&mut balloon, &xen, given).unwrap();
    }
    assert_eq!(balloon.runs(), [run(9, 26)]);
    assert!(agrees(&balloon, &xen, 100));
}

#[test]
fn pages_that_xen_does_not_take_stay_with_the_caller() {
    let (xen, mut balloon) = (domain(4096), Balloon::new());
    // 100 small pages of the second part, and then none.
    xen.does.replace([Ok(12), Ok(100), Ok(0)].into());
    assert_eq!(give(&mut balloon, &xen, run(500, 300)), Err((Errno::EBUSY, run(612, 188))));
    assert_eq!(balloon.runs(), [run(500, 112)]);
    // A failed call has no effect.
    xen.does.replace([Err(Errno::EPERM)].into());
    assert_eq!(give(&mut balloon, &xen, run(612, 188)), Err((Errno::EPERM, run(612, 188))));
    assert!(agrees(&balloon, &xen, 4096));
}

#[test]
fn pages_that_xen_does_not_give_stay_in_the_record() {
    let (xen, mut balloon) = (domain(4096), Balloon::new());
    give(&mut balloon, &xen, run(0, 2048)).unwrap();
    // Neither large extents nor small ones.
    xen.does.replace([Ok(0), Ok(0)].into());
    assert_eq!(balloon.take(&xen, 2048), Err(Errno::ENOMEM));
    xen.does.replace([Err(Errno::ENOMEM), Err(Errno::EPERM)].into());
    assert_eq!(balloon.take(&xen, 2048), Err(Errno::EPERM));
    assert_eq!(balloon.pages(), 2048);
    // No large extents, and some small ones.
    xen.does.replace([Ok(0), Ok(7)].into());
    assert_eq!(balloon.take(&xen, 2048), Ok(run(0, 7)));
    // One of three large extents, after the small ones before them.
    xen.does.replace([Ok(512), Ok(1)].into());
    assert_eq!(balloon.take(&xen, 2041), Ok(run(7, 505)));
    assert_eq!(balloon.take(&xen, 1536), Ok(run(512, 512)));
    assert!(agrees(&balloon, &xen, 4096) && balloon.pages() == 1024);
}

#[test]
fn a_full_record_takes_only_adjacent_runs() {
    let (xen, mut balloon) = (domain(4096), Balloon::new());
    for n in 0..MAX_RUNS as u64 {
        give(&mut balloon, &xen, run(3 * n, 1)).unwrap();
    }
    assert_eq!(give(&mut balloon, &xen, run(4000, 9)), Err((Errno::ENOSPC, run(4000, 9))));
    give(&mut balloon, &xen, run(1, 2)).unwrap();
    give(&mut balloon, &xen, run(4000, 9)).unwrap();
    assert!(agrees(&balloon, &xen, 4096));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn the_record_matches_xens_state_after_any_failure(
        steps in prop::collection::vec(
            (any::<bool>(), 0u64..1500, 1u64..1500, 0u64..600, 0..4),
            1..40,
        )
    ) {
        let (xen, mut balloon) = (domain(2500), Balloon::new());
        for (gives, start, count, does, fails) in steps {
            xen.does.borrow_mut().clear();
            match fails {
                0 => xen.does.borrow_mut().extend([Err(Errno::ENOMEM), Err(Errno::ENOMEM)]),
                1 => xen.does.borrow_mut().extend([Ok(does), Ok(does / 2)]),
                _ => {}
            }
            if gives {
                // The populated frames from `start` on.
                let there = (start..start + count)
                    .take_while(|frame| xen.populated.borrow().contains(frame))
                    .count();
                let there = run(start, there as u64);
                if let Err((_, left)) = give(&mut balloon, &xen, there) {
                    prop_assert_eq!(left.end(), there.end());
                    let populated = xen.populated.borrow();
                    let mut frames = left.start.0..left.end();
                    prop_assert!(frames.all(|frame| populated.contains(&frame)));
                }
            } else if let Ok(taken) = balloon.take(&xen, count) {
                prop_assert!(taken.count > 0 && taken.count <= count);
            }
            prop_assert!(agrees(&balloon, &xen, 2500));
        }
    }
}

//! Computes with floats in tasks that alternate, over many sleeps, and prints the results' bits.
//! The computation is chaotic: one wrong bit makes all bits wrong a hundred steps later.
#![no_std]
#![no_main]

use core::cell::Cell;
use embassy_time::Timer;
use kernel::System;
use xen::Errno;

extern crate alloc;
use alloc::rc::Rc;

kernel::entry!(main);

/// Steps of each computation.
const STEPS: u32 = 400;

async fn main(system: System) -> Result<(), Errno> {
    let running = Rc::new(Cell::new(3));
    let done = |running: &Rc<Cell<u32>>| running.set(running.get() - 1);

    // Sleeps until the timer's interrupt after each step.
    let timers = running.clone();
    system.spawn(async move {
        let mut x = 0.3_f64;
        for step in 0..STEPS {
            x = 3.9 * x * (1.0 - x);
            Timer::after_micros(u64::from(50 + step % 7 * 100)).await;
        }
        log::info!("double {:016x}", x.to_bits());
        done(&timers);
    });
    let single = running.clone();
    system.spawn(async move {
        let mut x = 0.3_f32;
        for step in 0..STEPS {
            x = 3.9 * x * (1.0 - x);
            Timer::after_micros(u64::from(70 + step % 5 * 100)).await;
        }
        log::info!("single {:08x}", x.to_bits());
        done(&single);
    });
    // Sleeps until an event of xenstore; divides, and converts from and to integers.
    let (events, store) = (running.clone(), system.store().clone());
    system.spawn(async move {
        let mut x = 1.0_f64;
        for step in 0..STEPS {
            let whole = (x * 1e9) as i64 % 1000;
            x = (whole as f64 + f64::from(step)) / (x + 0.1) / 700.0 + f64::from(x as f32) / 3.0;
            if step % 4 == 0 && store.read("domid").await.is_err() {
                log::error!("xenstore does not answer");
            }
        }
        log::info!("events {:016x}", x.to_bits());
        done(&events);
    });
    while running.get() > 0 {
        Timer::after_millis(5).await;
    }
    Ok(())
}

//! Random numbers.

use core::hint::spin_loop;
use x86_64::instructions::random::RdRand;

/// How often the processor may have no number. It has none while others use up all that its source
/// makes; Intel's manual says that ten times in a row mean a broken processor.
const ATTEMPTS: u32 = 1000;

/// Numbers from the processor's own source. `None` if it has none.
pub fn random() -> Option<impl FnMut() -> [u8; 16] + use<>> {
    let source = RdRand::new()?;
    let number = move || {
        let next = || {
            spin_loop();
            source.get_u64()
        };
        (0..ATTEMPTS).find_map(|_| next()).expect("the processor makes random numbers")
    };
    Some(move || {
        let (low, high) = (number(), number());
        (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
    })
}

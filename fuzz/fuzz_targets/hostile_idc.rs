#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| xensock_fuzz::hostile_idc::run(bytes));

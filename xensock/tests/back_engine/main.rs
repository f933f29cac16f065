//! The backend's engine, against a guest whose test writes each request itself.

mod datagrams;
#[allow(unsafe_code, reason = "gives pages back to the fake machine")]
mod guest;
mod hostile;
mod listeners;
mod rates;
mod streams;
mod turns;

//! What TLS costs on this machine: handshakes, and encryption of records of 16 KiB.
//!
//! The first command uses SIMD registers. The second one has the flags of the kernel's
//! `.cargo/config.toml`, except that of random numbers, and the variables its optimisation:
//!
//! ```sh
//! cargo run --profile host -p tls --example speed --features testing
//! RUSTFLAGS='--cfg aes_backend="soft" --cfg chacha20_backend="soft"
//!     --cfg curve25519_dalek_backend="serial" --cfg poly1305_backend="soft"
//!     --cfg polyval_backend="soft" --cfg sha2_backend="soft"' \
//!     CARGO_PROFILE_HOST_OPT_LEVEL=z CARGO_PROFILE_HOST_LTO=fat \
//!     CARGO_PROFILE_HOST_CODEGEN_UNITS=1 \
//!     cargo run --profile host -p tls --example speed --features testing \
//!     --config 'profile.host.package.tls.opt-level="s"'
//! ```

use aead::{AeadInOut, KeyInit, inout::InOutBuf};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use chacha20poly1305::ChaCha20Poly1305;
use embedded_io_async::{Read, Write};
use futures_executor::block_on;
use futures_util::future::join;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tls::testing::{Authority, End, Key, VALID};
use tls::{BUFFER, Client, Server, ServerName, Stream};

const RECORD: usize = 16 << 10;

/// How long each part runs.
const TIME: Duration = Duration::from_secs(1);

fn clock() -> Option<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok()
}

/// Both ends of a new connection, after their handshake.
fn connect(client: &Client, server: &Server) -> (Stream<End>, Stream<End>) {
    let (near, far) = End::pair();
    let (name, buffer) = (ServerName::try_from("localhost").unwrap(), || vec![0; BUFFER].into());
    let mut near = Stream::client(near, client, name, buffer()).unwrap();
    let mut far = Stream::server(far, server, buffer()).unwrap();
    let (near_is_done, far_is_done) = block_on(join(near.handshake(), far.handshake()));
    near_is_done.unwrap();
    far_is_done.unwrap();
    (near, far)
}

/// The processor's time of this thread: a busy machine must not count.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// How often `work` is done in a second.
fn rate(mut work: impl FnMut()) -> f64 {
    let (start, mut count) = (processor_time(), 0);
    loop {
        work();
        count += 1;
        let time = processor_time() - start;
        if time >= TIME {
            return f64::from(count) / time.as_secs_f64();
        }
    }
}

fn encryption<C: AeadInOut + KeyInit>() -> f64 {
    let cipher = C::new_from_slice(&vec![7; C::key_size()]).unwrap();
    let mut record = vec![0; RECORD];
    let nonce = aead::Nonce::<C>::default();
    let each = || {
        let text = InOutBuf::from(&mut *record);
        cipher.encrypt_inout_detached(&nonce, &[], text).unwrap();
    };
    rate(each) * RECORD as f64 / 1e6
}

fn main() {
    for (name, speed) in [
        ("ChaCha20-Poly1305", encryption::<ChaCha20Poly1305>()),
        ("AES-128-GCM", encryption::<Aes128Gcm>()),
        ("AES-256-GCM", encryption::<Aes256Gcm>()),
    ] {
        println!("{name}: {speed:.0} MB/s");
    }
    for key in [Key::P256, Key::P384, Key::Rsa] {
        let authority = Authority::new("an authority", key);
        let file = authority.issue("DNS:localhost", key, VALID).file();
        let client = Client::new(authority.root().as_bytes(), clock).unwrap();
        let server = Server::new(file.as_bytes()).unwrap();
        let handshakes = rate(|| drop(connect(&client, &server)));
        println!("handshakes of both ends, {key:?}: {handshakes:.0}/s");
        if key != Key::P256 {
            continue;
        }
        let (mut near, mut far) = connect(&client, &server);
        let (text, mut got) = (vec![0; RECORD], vec![0; RECORD]);
        let each = || {
            block_on(async {
                far.write_all(&text).await.unwrap();
                far.flush().await.unwrap();
                near.read_exact(&mut got).await.unwrap();
            });
        };
        let speed = rate(each) * RECORD as f64 / 1e6;
        println!("a transfer, both ends: {speed:.0} MB/s");
    }
}

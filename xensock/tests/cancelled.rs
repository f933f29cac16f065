//! Dropped futures leave nothing behind: the rig checks that after each test.

mod rig;

use embassy_time::{Duration, Timer, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::{join, join_all, poll_immediate};
use rig::{address, pattern, with_backend};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use xensock::Errno;
use xensock::wire::SocketOption;

/// Polls a future for a while, then drops it.
async fn give_up_on(future: impl Future, after: Duration) {
    assert!(with_timeout(after, future).await.is_err(), "the future completed");
}

const SOON: Duration = Duration::from_millis(20);

#[test]
fn a_cancelled_connect_is_released_once_it_succeeds() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        rig.net.silence(address(80));
        give_up_on(rig.frontend.connect(address(80)), SOON).await;
        rig.net.speak(address(80));
        let socket = server.accept().await;
        assert_eq!(socket.read_to_end().await, Ok(Vec::new()), "the connection carried no data");
        drop(socket);
        rig.until(|| rig.net.open_sockets() == 0 && rig.holds_nothing_in_use()).await;
    });
}

#[test]
fn a_cancelled_connect_is_forgotten_once_it_fails() {
    with_backend(|rig| async move {
        rig.net.silence(address(80));
        give_up_on(rig.frontend.connect(address(80)), SOON).await;
        rig.net.speak(address(80));
        rig.until(|| rig.world.ports() == 1).await;
    });
}

#[test]
fn a_connect_can_be_cancelled_at_every_step() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        rig.frontend.connected().await.unwrap();
        for step in 0..200 {
            // Each poll advances the future, and everything around it, by one step.
            let given_up = async {
                let mut connect = pin!(rig.frontend.connect(address(80)));
                for _ in 0..step {
                    if poll_immediate(connect.as_mut()).await.is_some() {
                        return false;
                    }
                    let mut yielded = false;
                    std::future::poll_fn(|cx| {
                        if std::mem::replace(&mut yielded, true) {
                            return std::task::Poll::Ready(());
                        }
                        cx.waker().wake_by_ref();
                        std::task::Poll::Pending
                    })
                    .await;
                }
                true
            };
            if !given_up.await {
                assert!(step > 1, "connecting takes several steps");
                break;
            }
            assert!(step < 199, "it never connected");
        }
        rig.until(|| rig.frontend.statistics().streams_open == 0).await;
        drop(server);
    });
}

#[test]
fn a_cancelled_accept_leaves_its_connection_to_the_next() {
    with_backend(|rig| async move {
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        give_up_on(listener.accept(), SOON).await;
        let client = rig.net.connect(address(80)).await.unwrap();
        Timer::after(SOON).await;
        let mut stream = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(stream.read(&mut [0; 2]).await, Ok(1));
    });
}

#[test]
fn a_connection_wakes_a_caller_of_accept_that_came_after_cancelled_ones() {
    with_backend(|rig| async move {
        let listener = Rc::new(rig.frontend.bind(address(80)).await.unwrap());
        give_up_on(join_all((0..4).map(|_| listener.accept())), SOON).await;
        let accepted = Rc::new(Cell::new(0));
        for _ in 0..6 {
            let (listener, accepted) = (listener.clone(), accepted.clone());
            rig.spawn(async move {
                if listener.accept().await.is_ok() {
                    accepted.set(accepted.get() + 1);
                }
            });
        }
        Timer::after(SOON).await;
        let _client = rig.net.connect(address(80)).await.unwrap();
        rig.until(|| accepted.get() == 1).await;
    });
}

#[test]
fn dropping_a_listener_cancels_its_accept() {
    with_backend(|rig| async move {
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        give_up_on(listener.accept(), SOON).await;
        drop(listener);
        rig.until(|| rig.net.bound_sockets() == 0 && rig.holds_nothing_in_use()).await;
    });
}

#[test]
fn dropping_a_listener_closes_connections_that_were_not_accepted() {
    with_backend(|rig| async move {
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        give_up_on(listener.accept(), SOON).await;
        let client = rig.net.connect(address(80)).await.unwrap();
        Timer::after(SOON).await;
        drop(listener);
        assert_eq!(client.read_to_end().await, Ok(Vec::new()));
        drop(client);
        rig.until(|| rig.net.open_sockets() == 0 && rig.holds_nothing_in_use()).await;
    });
}

#[test]
fn a_cancelled_bind_frees_its_address() {
    with_backend(|rig| async move {
        rig.frontend.connected().await.unwrap();
        {
            let mut bind = pin!(rig.frontend.bind(address(80)));
            assert!(poll_immediate(bind.as_mut()).await.is_none());
        }
        let bound = async {
            while rig.frontend.bind(address(80)).await.map(drop) == Err(Errno::EADDRINUSE) {
                Timer::after_millis(1).await;
            }
        };
        bound.await;
    });
}

#[test]
fn cancelled_reads_and_writes_have_no_effect() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        give_up_on(stream.read(&mut [0; 10]), SOON).await;
        // Fill the ring and the network.
        let data = pattern(4 << 20);
        let mut sent = 0;
        while let Ok(count) = with_timeout(SOON, stream.write(&data[sent..])).await {
            sent += count.unwrap();
        }
        give_up_on(stream.write(&data[sent..]), SOON).await;
        drop(stream);
        assert!(socket.read_to_end().await.unwrap() == data[..sent]);
    });
}

#[test]
fn a_shutdown_at_any_time_leaves_nothing_behind() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let _socket = server.accept().await;
        let listener = rig.frontend.bind(address(81)).await.unwrap();
        give_up_on(listener.accept(), SOON).await;
        rig.net.silence(address(82));
        give_up_on(rig.frontend.connect(address(82)), SOON).await;
        let mut byte = [0];
        let (read, ()) = join(stream.read(&mut byte), rig.frontend.shutdown()).await;
        assert_eq!(read, Err(Errno::ENODEV));
        assert_eq!(listener.accept().await.map(drop), Err(Errno::ENODEV));
        assert_eq!(listener.option(SocketOption::KeepIdle).await, Err(Errno::ENODEV));
        let option = stream.option(SocketOption::KeepIdle).await;
        assert!(matches!(option, Err(Errno::ENODEV | Errno::EOPNOTSUPP)), "{option:?}");
        assert_eq!(rig.frontend.connect(address(80)).await.map(drop), Err(Errno::ENODEV));
    });
}

#[test]
fn exhausted_resources_are_errors_and_nothing_is_lost() {
    with_backend(|rig| async move {
        let _server = rig.net.listen(address(80)).unwrap();
        rig.frontend.connected().await.unwrap();
        rig.world.limit_grants(2);
        assert_eq!(rig.frontend.connect(address(80)).await.map(drop), Err(Errno::ENOSPC));
        rig.world.limit_grants(1000);
        rig.world.limit_ports(0);
        assert_eq!(rig.frontend.connect(address(80)).await.map(drop), Err(Errno::ENOSPC));
        rig.world.limit_ports(1000);
        // The pooled pages are enough for one connection, but not for two.
        rig.world.limit_pages(1);
        let stream = rig.frontend.connect(address(80)).await.unwrap();
        assert_eq!(rig.frontend.connect(address(80)).await.map(drop), Err(Errno::ENOMEM));
        let grants = rig.world.grants();
        drop(stream);
        rig.until(|| rig.frontend.statistics().streams_open == 0).await;
        rig.until(|| rig.holds_nothing_in_use()).await;
        let _stream = rig.frontend.connect(address(80)).await.unwrap();
        assert_eq!(rig.world.grants(), grants);
    });
}

//! Hearing of changes below a node.

use super::connection::{Connection, Undo};
use super::wire::check_path;
use crate::Errno;
use crate::abi::xs_wire::XS_WATCH;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::future::poll_fn;

/// A registered watch. Dropping it ends the watch.
///
/// A path that fires again before it was fetched is reported once. After very many different paths
/// the watched path itself is reported in their place: look at the whole then.
#[derive(Debug)]
pub struct Watch {
    connection: Rc<Connection>,
    path: String,
    token: u32,
    registered: bool,
}

impl Watch {
    pub(super) async fn register(connection: Rc<Connection>, path: &str) -> Result<Watch, Errno> {
        check_path(path)?;
        // Room for events comes first: the first may overtake the answer.
        let token = connection.open_watch(path);
        let path = path.to_string();
        let mut watch = Watch { connection, path, token, registered: false };
        let (path, digits) = (watch.path.clone(), token.to_string());
        let parts: [&[u8]; 4] = [watch.path.as_bytes(), &[0], digits.as_bytes(), &[0]];
        let undo = Undo::Unwatch { path, token };
        watch.connection.request(XS_WATCH, 0, undo, &parts)?.await?;
        watch.registered = true;
        Ok(watch)
    }

    /// Waits for a change and returns the path of the node that changed: the watched one or one
    /// below it, absolute or relative as the watched path was. After the connection's end it waits for ever.
    pub async fn next(&mut self) -> String {
        poll_fn(|cx| self.connection.poll_watch(self.token, cx)).await
    }

    /// The watched path.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.close_watch(self.token);
        if self.registered {
            self.connection.unwatch(&self.path, self.token);
        }
    }
}

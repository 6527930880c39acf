//! Where a debugger connects: a socket that the VMM listens on, on loopback unless told otherwise.

use crate::act::is_socket_path;
use crate::failure::Failure;
use bulkhead_supervisor::reason;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

/// A listening socket. Dropping it removes the name of a Unix socket.
#[derive(Debug)]
pub(crate) struct Gdb {
    pub(crate) socket: Arc<OwnedFd>,
    /// What `target remote` takes.
    pub(crate) target: String,
    path: Option<PathBuf>,
}

/// Listens on `address`: `ADDRESS:PORT`, `PORT`, or the path of a Unix socket.
pub(crate) fn listen(address: &str) -> Result<Gdb, Failure> {
    let failed = |error: io::Error| {
        let message = format!("cannot listen on `{address}`: {}", reason(&error));
        Failure::new("gdb", message)
            .help("choose another: --gdb=127.0.0.1:1235, --gdb=/tmp/gdb.sock")
    };
    if is_socket_path(address) {
        let listener = UnixListener::bind(address).map_err(failed)?;
        return Ok(Gdb {
            socket: Arc::new(listener.into()),
            target: address.to_owned(),
            path: Some(address.into()),
        });
    }
    let parsed = match address.parse() {
        Ok(port) => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
        Err(_) => address.parse(),
    };
    let parsed = parsed.map_err(|_| {
        let message = format!("`{address}` is no address for a debugger");
        Failure::new("usage", message).help("write ADDRESS:PORT, PORT or a path with a slash")
    })?;
    let listener = TcpListener::bind(parsed).map_err(failed)?;
    let target = listener.local_addr().map_err(failed)?.to_string();
    Ok(Gdb {
        socket: Arc::new(listener.into()),
        target,
        path: None,
    })
}

impl Drop for Gdb {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody else may have removed it.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_made_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gdb.sock");
        let gdb = listen(path.to_str().unwrap()).unwrap();
        assert!(path.exists());
        assert!(listen(path.to_str().unwrap()).is_err(), "it is taken");
        drop(gdb);
        assert!(!path.exists());
        assert!(
            listen("127.0.0.1:0")
                .unwrap()
                .target
                .starts_with("127.0.0.1:")
        );
        assert!(listen("nonsense").is_err());
    }
}

//! Listeners that accept for a shard, with real sockets.

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use mio::Poll;

use super::world::{Setup, World};
use crate::engine::threads::listener::Listeners;
use crate::listener::Listener;

const AT_ONCE: u32 = 4;

#[test]
fn busy_listeners_take_turns_although_a_wake_up_has_two_turns() {
    let world = World::new(Setup::default());
    let poll = Poll::new().unwrap();
    let bound: Vec<Listener> = (0..2)
        .map(|_| Listener::tcp("127.0.0.1:0").unwrap())
        .collect();
    let connected: Vec<Vec<TcpStream>> = bound
        .iter()
        .map(|listener| {
            let address = listener.local_addr().unwrap();
            let connect = |_| TcpStream::connect(address).unwrap();
            (0..2 * AT_ONCE).map(connect).collect()
        })
        .collect();
    let clients: Vec<Vec<SocketAddr>> = connected
        .iter()
        .map(|of| of.iter().map(|one| one.local_addr().unwrap()).collect())
        .collect();
    let sockets = bound.into_iter().map(|listener| listener.0).collect();
    let mut listeners = Listeners::new(sockets, world.hub.clone(), &poll).unwrap();
    let mut accepted = [0; 2];
    for _ in 0..2 {
        let mut left = AT_ONCE;
        for _ in 0..2 {
            for connection in listeners.accept(Instant::now(), &mut left) {
                let of = clients
                    .iter()
                    .position(|of| of.contains(&connection.peer))
                    .unwrap();
                accepted[of] += 1;
            }
        }
        assert_eq!(left, 0);
    }
    assert_eq!(accepted, [AT_ONCE; 2]);
}

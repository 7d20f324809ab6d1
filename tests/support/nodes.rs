//! Nodes of a cluster: several apps in the process of the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use humphrey_ws::{
    AsyncSender, AsyncStream, AsyncWebsocketApp, Cluster, ClusterMetrics, RunningApp,
};

use crate::support::{Client, eventually, start};

const STOP: Duration = Duration::from_secs(1);

/// A node, as its tests see it.
pub(crate) struct Node {
    running: RunningApp,
    pub(crate) address: SocketAddr,
    pub(crate) sender: AsyncSender,
}

impl Node {
    pub(crate) fn start(app: AsyncWebsocketApp<()>) -> Self {
        let (running, address) = start(app);
        let sender = running.sender();
        Self {
            running,
            address,
            sender,
        }
    }

    /// Starts a node whose clients join the rooms in their path (`/a+b`), and waits until it is connected.
    pub(crate) fn joining(cluster: impl Into<Cluster>) -> Self {
        let node = Self::start(joining().with_cluster(cluster));
        node.wait_until_connected();
        node
    }

    pub(crate) fn metrics(&self) -> ClusterMetrics {
        self.sender.metrics().cluster
    }

    pub(crate) fn wait_until_connected(&self) {
        eventually("the node is connected", || {
            self.metrics().servers_connected > 0
        });
    }

    pub(crate) fn wait_until_disconnected(&self) {
        eventually("the node is disconnected", || {
            self.metrics().servers_connected == 0
        });
    }

    pub(crate) fn join(&self, rooms: &str) -> Client {
        let mut client = Client::connect_to(self.address, &format!("/{rooms}"));
        assert_eq!(client.receive_text(), "joined");
        client
    }

    pub(crate) fn stop(self) {
        self.running.shutdown(STOP);
    }
}

pub(crate) fn joining() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_shards(2)
        .with_connect_handler(join_rooms)
}

fn join_rooms(stream: AsyncStream, _: Arc<()>) {
    for room in stream.path()[1..]
        .split('+')
        .filter(|room| !room.is_empty())
    {
        stream.join(room);
    }
    stream.send("joined");
}

pub(crate) fn stop(nodes: impl IntoIterator<Item = Node>) {
    nodes.into_iter().for_each(Node::stop);
}

pub(crate) fn hear_each_other(nodes: &[&Node]) {
    for node in nodes {
        eventually("the nodes hear each other", || {
            node.metrics().nodes == nodes.len() as u64
        });
    }
}

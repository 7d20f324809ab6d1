//! The subject: the same two jobs on humphrey_ws, through its ordinary public API.
//!
//! One shard, handlers on the pool, no option that a usual program would not set.

use std::io;
use std::net::SocketAddrV4;

use humphrey_ws::AsyncWebsocketApp;

use crate::args::Job;
use crate::wire::PUBLISH;

pub(crate) fn serve(job: Job, address: SocketAddrV4) -> io::Result<()> {
    let app = AsyncWebsocketApp::<()>::new_with_config((), 32, 1)
        .with_address(address)
        .with_shards(1);
    let mut app = match job {
        Job::Echo => app.with_message_handler(|stream, message, _| stream.send(message)),
        Job::Fanout => app.with_message_handler(|stream, message, _| {
            if stream.path() == PUBLISH {
                stream.broadcast(message);
            }
        }),
    };
    crate::ready(app.bind()?)?;
    app.run();
    Err(io::Error::other("the server came to an end by itself"))
}

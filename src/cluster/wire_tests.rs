use super::*;

fn envelopes() -> Vec<Envelope<'static>> {
    let message = MessageEnvelope {
        count: 0,
        is_text: true,
        uncompressed: false,
        except: None,
        payload: b"",
    };
    let except = RemoteConnection {
        node: u32::MAX,
        shard: 1,
        slot: u32::MAX - 1,
        generation: 0,
    };
    let messages = [
        message,
        MessageEnvelope {
            payload: "Grüße".as_bytes(),
            count: 1,
            ..message
        },
        MessageEnvelope {
            is_text: false,
            payload: b"\xff\0\x01",
            count: u64::MAX,
            uncompressed: true,
            except: Some(except),
        },
    ];
    let heartbeats = [
        Heartbeat {
            count: 300,
            versions: (1, 2),
            is_last: false,
        },
        Heartbeat {
            count: 0,
            versions: (255, 0),
            is_last: true,
        },
    ];
    let contents = messages.map(EnvelopeContent::Message).into_iter();
    contents
        .chain(heartbeats.map(EnvelopeContent::Heartbeat))
        .zip([0, 1, 0x1234_5678, u32::MAX, 7])
        .map(|(content, node)| Envelope { node, content })
        .collect()
}

#[test]
fn encoded_envelope_decodes_to_itself() {
    for envelope in envelopes() {
        assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
    }
}

#[test]
fn truncated_envelope_is_refused_or_has_a_shorter_payload() {
    for envelope in envelopes() {
        let bytes = envelope.encode();
        for len in 0..bytes.len() {
            match Envelope::decode(&bytes[..len]) {
                Ok(Envelope {
                    content: EnvelopeContent::Message(message),
                    ..
                }) => assert!(bytes[..len].ends_with(message.payload)),
                // The last field of a heartbeat may be absent.
                Ok(heartbeat) => assert_eq!(heartbeat.node, envelope.node),
                Err(_) => {}
            }
        }
    }
}

#[test]
fn unknown_fields_and_longer_values_are_skipped() {
    for envelope in envelopes() {
        let bytes = envelope.encode();
        let mut newer = bytes[..2].to_vec();
        // A field of a later version, such as a key, before and a known field that has grown.
        write_field(&mut newer, 200, b"a key of a later version");
        let mut node = envelope.node.to_le_bytes().to_vec();
        node.extend_from_slice(b"more");
        write_field(&mut newer, NODE, &node);
        newer.extend_from_slice(&bytes[2 + 6..]);
        assert_eq!(Envelope::decode(&newer), Ok(envelope));
    }
}

#[test]
fn bad_envelope_is_refused_with_its_cause() {
    let node = [NODE, 4, 0, 0, 0, 0];
    let with = |head: [u8; 2], rest: &[u8]| [&head, &node[..], rest].concat();
    for (bytes, cause) in [
        (vec![], BadEnvelope::Truncated),
        (vec![VERSION], BadEnvelope::Truncated),
        (with([0, TEXT], &[PAYLOAD]), BadEnvelope::Version(0)),
        (with([9, TEXT], &[PAYLOAD]), BadEnvelope::Version(9)),
        (with([VERSION, 99], &[PAYLOAD]), BadEnvelope::Kind(99)),
        (with([VERSION, TEXT], &[]), BadEnvelope::Missing(PAYLOAD)),
        (vec![VERSION, TEXT, PAYLOAD], BadEnvelope::Missing(NODE)),
        (
            with([VERSION, HEARTBEAT], &[]),
            BadEnvelope::Missing(VERSIONS),
        ),
        (with([VERSION, TEXT], &[PAYLOAD, 0xff]), BadEnvelope::Utf8),
        (
            with([VERSION, TEXT], &[EXCEPT, 2, 0, 0, PAYLOAD]),
            BadEnvelope::Field(EXCEPT),
        ),
        (with([VERSION, TEXT], &[77, 200]), BadEnvelope::Truncated),
        (
            with(
                [VERSION, TEXT],
                &[77, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            ),
            BadEnvelope::Truncated,
        ),
    ] {
        assert_eq!(Envelope::decode(&bytes), Err(cause), "{bytes:?}");
        assert!(!cause.to_string().is_empty());
    }
}

#[test]
fn random_bytes_never_panic() {
    // A generator that suffices to reach every branch; its seed is fixed, so a failure repeats.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize
    };
    let seeds: Vec<_> = envelopes().iter().map(Envelope::encode).collect();
    for _ in 0..20_000 {
        let mut bytes = seeds[next() % seeds.len()].to_vec();
        for _ in 0..=next() % 4 {
            let at = next() % bytes.len();
            bytes[at] = next() as u8;
        }
        bytes.truncate(next() % (bytes.len() + 1));
        if let Ok(envelope) = Envelope::decode(&bytes) {
            // What was decoded can be sent on without a change of meaning.
            assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
        }
    }
}

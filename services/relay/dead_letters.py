"""``framebus-relay dead-letters``: list frames that no detector could process, replay them, or reproduce a failure."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from services.common.broker import BROKER_ERRORS, connect, why
from services.common.broker_messages import open_channel, publish
from services.common.broker_names import GROUP, REASON, WORKER, Names
from services.common.config import ConfigurationError, load
from services.common.dead_letter import death_of, deliveries, id_of, reason_of
from services.common.reference import BadReference, FrameReference, trace_id
from services.common.service import ServiceError, find_service
from services.common.storage import Storage, StorageError
from services.relay.config import RelayConfiguration

MOST = 10_000
"""Largest number of dead letters that one command reads. They are all held in memory."""

Letter = AbstractIncomingMessage


def main(arguments: list[str]) -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="framebus-relay dead-letters", description=__doc__)
    parser.add_argument("--config", type=Path, help="the YAML file of all services; without it, the defaults apply")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print one line for each: its ID, reason, detector and deliveries").add_argument(
        "--json", action="store_true", help="print a JSON object for each"
    )
    for name, text in (
        ("show", "print everything known about one, as JSON"),
        ("run", "run the detector's code on its frame here, and print the result or the failure"),
    ):
        commands.add_parser(name, help=text).add_argument("id", metavar="ID", help="as list prints it")
    for name, text in (
        ("replay", "hand it to the detectors again"),
        ("drop", "remove it, and its frame"),
    ):
        command = commands.add_parser(name, help=text)
        which = command.add_mutually_exclusive_group(required=True)
        which.add_argument("id", metavar="ID", nargs="?", help="as list prints it")
        which.add_argument("--all", action="store_true", help="each of them")
    options = parser.parse_args(arguments)
    configuration = load(RelayConfiguration, options.config)
    try:
        return asyncio.run(_run(configuration, options))
    except BROKER_ERRORS as error:
        raise ServiceError(f"the broker: {why(error)}") from None
    except StorageError as error:
        raise ServiceError(str(error)) from None


async def _run(configuration: RelayConfiguration, options: argparse.Namespace) -> int:
    wanted = getattr(options, "id", None)
    reference: FrameReference | None = None
    async with _letters(configuration) as (channel, all_letters):
        letters = [letter for letter in all_letters if wanted in (None, id_of(letter))]
        if wanted is not None and not letters:
            raise ServiceError(f"there is no dead letter {wanted}: 'dead-letters list' shows all")
        if options.command == "list":
            _print_list(letters, as_json=options.json)
        elif options.command == "show":
            print(json.dumps(_described(letters[0]), indent=2))
        elif options.command == "run":
            try:
                reference = FrameReference.from_json(letters[0].body)
            except BadReference as error:
                raise ServiceError(f"there is no frame to run: {error}") from None
        else:
            act = _replay if options.command == "replay" else _drop
            for letter in letters:
                await act(configuration, channel, letter)
            print(f"{len(letters)} {'replayed' if options.command == 'replay' else 'dropped'}")
    # After the connection is closed: the letter is back in the queue while the model runs, which may take long.
    if reference is not None:
        return await asyncio.to_thread(_reproduce, reference, options.config)
    return 0


@asynccontextmanager
async def _letters(configuration: RelayConfiguration) -> AsyncIterator[tuple[AbstractChannel, list[Letter]]]:
    """Yield all dead letters. Those that are not acknowledged at the end return to their places in the queue."""
    names = Names(configuration.stream.name)
    connection = await connect(configuration.broker)
    async with connection:
        channel = await open_channel(connection)
        queue = await channel.get_queue(names.dead)
        letters: list[Letter] = []
        # Nothing is acknowledged while reading: the connection's end returns the letters to the queue.
        while len(letters) < MOST and (letter := await queue.get(fail=False)) is not None:
            letters.append(letter)
        yield channel, letters


async def _replay(configuration: RelayConfiguration, channel: AbstractChannel, letter: Letter) -> None:
    """Publish a letter to its original queue again, then acknowledge it. A death between the two duplicates it."""
    names = Names(configuration.stream.name)
    group = str(letter.headers.get(GROUP) or "")
    queue = names.group(group) if group else str(death_of(letter).get("queue", ""))
    if queue not in {names.group(one) for one in configuration.relay.groups}:
        raise ServiceError(f"{id_of(letter)} was in the queue {queue!r}, which is of none of relay.groups")
    # A replayed frame begins anew, without the counts and reasons of its earlier deliveries.
    ours = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count", REASON, WORKER, GROUP)
    headers = {name: value for name, value in letter.headers.items() if not name.startswith(ours)}
    sent = aio_pika.Message(
        letter.body,
        type=letter.type,
        message_id=letter.message_id,
        content_type=letter.content_type,
        headers=headers,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    # By the default exchange, to this group's queue alone: the fanout exchange would hand the frame to all groups.
    await publish(channel.default_exchange, sent, queue, mandatory=True)
    await letter.ack()


async def _drop(configuration: RelayConfiguration, channel: AbstractChannel, letter: Letter) -> None:
    del channel
    with contextlib.suppress(BadReference):  # not a reference, so there is no frame to remove
        await Storage(configuration.storage).delete([FrameReference.from_json(letter.body).address])
    await letter.ack()


def _reproduce(reference: FrameReference, config: Path | None) -> int:
    """Run the detector's command for a reference. Find it by entry point: services never import each other."""
    try:
        run = find_service("detector").commands["run"]
    except (ConfigurationError, KeyError) as error:
        raise ServiceError(f"the detector's code is not installed here: {error}") from None
    # Use a memory file, because a container may have no writable folder.
    descriptor = os.memfd_create("reference.json")
    try:
        os.write(descriptor, reference.to_json())
        return run([*(["--config", str(config)] if config else []), f"/proc/self/fd/{descriptor}"])
    finally:
        os.close(descriptor)


def _described(letter: Letter) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": id_of(letter),
        "reason": reason_of(letter),
        "detector": letter.headers.get(WORKER),
        "group": letter.headers.get(GROUP) or str(death_of(letter).get("queue", "")).rpartition(".")[2],
        # RabbitMQ 4 omits the number of deliveries if it moved the letter itself, after the last of several.
        "deliveries": deliveries(letter) + 1 if deliveries(letter) or REASON in letter.headers else None,
        "traceparent": letter.headers.get("traceparent"),
    }
    try:
        reference = FrameReference.from_json(letter.body)
    except BadReference as error:
        return {**told, "not_a_reference": str(error), "body": letter.body[:1000].decode(errors="replace")}
    return {**told, "trace_id": trace_id(reference.key), "reference": json.loads(letter.body)}


def _print_list(letters: list[Letter], *, as_json: bool) -> None:
    if as_json:
        for letter in letters:
            print(json.dumps(_described(letter)))
        return
    for letter in letters:
        told = _described(letter)
        times = told["deliveries"] or "?"
        print(f"{told['id']}  {told['reason']}  (detector {told['detector'] or '?'}, delivered {times})")
    if not letters:
        print("there are no dead letters")

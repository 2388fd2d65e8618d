"""Pipelines: version-2 Gadgetron documents in XML that carry settings; reading and finding them."""

from __future__ import annotations

import contextlib
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from gadgets.settings.settings import Settings, apply
from recon_core.errors import ResourceError, SettingsError
from recon_core.storage import packaged_folder
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Iterable
    from xml.etree.ElementTree import Element


MODULE, TARGET = "gadgets.external", "reconstruct"
#: Of the names that pipelines have among the configurations of a Gadgetron, which has a ``grappa.xml`` of its own.
PREFIX = "cinestream_"

_MOST_TAGS = 20_000  # of a configuration; an element in memory takes 100 times its text


def parse_configuration(text: str) -> Settings | None:
    """Read a configuration document, whichever of the two kinds it is.

    Parameters
    ----------
    text
        A whole version-2 pipeline, or the ``<configuration>`` element that a Gadgetron hands to its external peer, or
        (from a Gadgetron with a pipeline that has none) nothing.

    Returns
    -------
    Settings or None
        The settings of a whole pipeline's external node, or of the element; None if the document holds none.

    Raises
    ------
    SettingsError
        If it is no XML, holds entities, asks for other code than cinestream, or has an unknown or ill-typed setting.
    """
    root = _parse(text)
    if root is None:
        return None
    if is_pipeline(text):
        return _settings_of_pipeline(root)
    if root.tag != "configuration":
        raise SettingsError(f"expected <configuration>, got <{root.tag}>; pipelines are version-2 Gadgetron documents")
    return apply(Settings(), _values(root))


def is_pipeline(text: str) -> bool:
    """Tell a whole pipeline from the bare ``<configuration>`` of a Gadgetron's external node."""
    root = _parse(text)
    return root is not None and (root.find("stream") is not None or root.tag != "configuration")


def _parse(text: str) -> Element | None:
    body = re.sub(r"^\s*<\?xml[^>]*\?>", "", text, count=1).strip()
    if not body:
        return None
    if body.count("<") > _MOST_TAGS:
        raise SettingsError(f"the configuration has {body.count('<')} XML tags, at most {_MOST_TAGS} are read")
    try:
        root: Element = SafeTree.fromstring(body, forbid_dtd=True)
    except DefusedXmlException as error:
        raise SettingsError("the configuration declares a DTD or entities, which are not read") from error
    except (SafeTree.ParseError, ValueError) as error:
        raise SettingsError(f"the configuration is not XML ({error}); it begins with {body[:60]!r}") from error
    for node in root.iter():
        node.tag = str(node.tag).rpartition("}")[2]
    return root


def _settings_of_pipeline(root: Element) -> Settings:
    if root.tag != "configuration":
        raise SettingsError(f"expected a version-2 pipeline (<configuration>), got <{root.tag}>")
    nodes = list(root.findall("stream/*"))
    if [node.tag for node in nodes] != ["external"]:
        names = ", ".join(f"<{node.tag}> {node.findtext('classname', '')}".strip() for node in nodes) or "nothing"
        raise SettingsError(
            f"outside a Gadgetron a pipeline must hold one <external> node and nothing else; this one holds {names}"
            f"{_alternative(nodes)}"
        )
    return _settings_of_external(nodes[0])


def _alternative(nodes: list[Element]) -> str:
    """Name the pipeline that does here what this one does among the gadgets of a Gadgetron."""
    for node in nodes:
        if node.tag == "external":
            with contextlib.suppress(SettingsError):
                method = _settings_of_external(node).method
                return f". It needs a Gadgetron to run its gadgets; here take {method}, which does without them"
    return ""


def _settings_of_external(external: Element) -> Settings:
    execute, connect = external.find("execute"), external.find("connect")
    if execute is None and connect is None:
        raise SettingsError("the <external> node says neither <execute> nor <connect>")
    if execute is not None:
        module, target = execute.get("name", ""), execute.get("target", "")
        if (module, target) != (MODULE, TARGET):
            raise SettingsError(
                f"the pipeline wants to execute {module!r} {target!r}; only {MODULE!r} {TARGET!r} is run here"
            )
    configuration = external.find("configuration")
    return Settings() if configuration is None else apply(Settings(), _values(configuration))


def _values(configuration: Element) -> dict[str, object]:
    """Settings as attributes, as elements named after them, or as ``<property name= value=>`` in both spellings."""
    values: dict[str, object] = dict(configuration.attrib)
    for node in configuration:
        if node.tag == "property":
            name = node.get("name") or node.findtext("name") or ""
            value = node.get("value") or node.findtext("value") or ""
        else:
            name, value = node.tag, node.text or ""
        values[name.strip()] = value
    return values


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file: its name, its text and what its header comment says of it."""

    name: str
    text: str

    @property
    def comment(self) -> str:
        """The header comment: what data, what it needs, what comes out."""
        found = re.search(r"<!--(.*?)-->", self.text, re.DOTALL)
        return re.sub(r"\n[ \t]+", "\n", found.group(1)).strip() if found else ""

    @property
    def settings(self) -> Settings:
        """The settings it carries.

        Raises
        ------
        SettingsError
            If the file is broken.
        """
        return parse_configuration(self.text) or Settings()

    @property
    def needs_gadgetron(self) -> bool:
        """Whether gadgets of a Gadgetron stand before or behind cinestream; then `settings` is refused."""
        root = _parse(self.text)
        return root is not None and len(root.findall("stream/*")) > 1

    @property
    def node_settings(self) -> Settings:
        """The settings of its one external node, whatever gadgets stand around it.

        Raises
        ------
        SettingsError
            If the file is broken.
        """
        if not self.needs_gadgetron:
            return self.settings
        root = _parse(self.text)
        externals = [] if root is None else root.findall("stream/external")
        if len(externals) != 1:
            raise SettingsError(f"{self.name} holds {len(externals)} <external> nodes, expected one")
        return _settings_of_external(externals[0])

    def through_server(self, host: str, port: int) -> Pipeline:
        """Make its twin, by which a Gadgetron passes scans on to a resident server instead of starting processes.

        Parameters
        ----------
        host, port
            Where the Gadgetron finds the server.

        Raises
        ------
        SettingsError
            If the host is neither a name nor an address, or the port is no port.
        """
        if not _HOST.fullmatch(host) or not 0 < port < 1 << 16:
            raise SettingsError(f"a server has a name or an address, and a port from 1 to 65535; got {host!r}, {port}")
        server = f"`cinestream serve` running on {'the same machine' if host in _THIS_MACHINE else host}"

        def needs(found: re.Match[str]) -> str:
            words = " ".join(found[1].split())
            both = words.replace(_NOTHING, server) if words.startswith(_NOTHING) else f"{server}, and {words}"
            return textwrap.fill(f"Needs:  {both}", 120, initial_indent="  ", subsequent_indent=10 * " ")

        text = self.text.replace(
            f"cinestream: {self.name}\n", f"cinestream: {self.name}, through the resident server\n"
        )
        text = re.sub(r"^  Needs:  (.*?)$(?=\n  \w+:)", needs, text, flags=re.DOTALL | re.MULTILINE)
        return Pipeline(self.name + _CONNECT, text.replace(_EXECUTE, f'<connect address="{host}" port="{port}"/>'))


_CONNECT = "-connect"
_EXECUTE = f'<execute name="{MODULE}" target="{TARGET}" type="python"/>'
_NOTHING = "nothing but the readouts"
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def list_pipelines(folders: Iterable[Path] = ()) -> dict[str, Pipeline]:
    """All pipelines by name: those of the given folders first, then the ones that come with cinestream."""
    found: dict[str, Pipeline] = {}
    packaged = (entry for entry in packaged_folder("pipelines").iterdir() if entry.name.endswith(".xml"))
    for entry in [*(path for folder in folders for path in sorted(folder.glob("*.xml"))), *packaged]:
        name = entry.name.removesuffix(".xml")
        if name not in found:
            found[name] = Pipeline(name, entry.read_bytes().decode("utf-8", "replace"))
    return dict(sorted(found.items()))


def find_pipeline(name: str, folders: Iterable[Path] = ()) -> Pipeline:
    """Find a pipeline by name, in the allowed folders only.

    Parameters
    ----------
    name
        Name with or without ``.xml``; path parts are refused. cinestream_NAME and cinestream_NAME-connect, as they are
        called in a Gadgetron, are NAME itself here, where the scan has reached cinestream already.
    folders
        Folders that the operator allows besides the packaged pipelines.

    Raises
    ------
    SettingsError
        If the name has path parts or no pipeline is called so.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(f"a pipeline is chosen by its bare name, without path parts; got {name[:60]!r}")
    known = list_pipelines(folders)
    own = name.removesuffix(".xml")
    bare = own.removeprefix(PREFIX)
    for one in (own, bare):
        if one in known:
            return known[one]
    twin = known.get(bare.removesuffix(_CONNECT))
    if twin is None or twin.needs_gadgetron:
        raise SettingsError(f"there is no pipeline {name!r}; {choose_from(name, known, 'cinestream pipelines')}")
    return twin


def settings_of(pipeline: str | Path, folders: Iterable[Path] = ()) -> Settings:
    """Settings of a pipeline by name, or of an XML file.

    Parameters
    ----------
    pipeline
        Path of a file that ends in ``.xml``, or else a name as for `find_pipeline`.
    folders
        As for `find_pipeline`.

    Raises
    ------
    SettingsError
        If no pipeline is called so, or it is broken.
    ResourceError
        If the file cannot be read.
    """
    path = Path(pipeline)
    if path.suffix != ".xml" or not path.is_file():
        return find_pipeline(str(pipeline), folders).settings
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"cannot read {path}: {error}") from error
    return parse_configuration(text) or Settings()

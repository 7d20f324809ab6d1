"""The packages that packaging/build has made."""

import subprocess
from pathlib import Path

NAME = "humphrey-broadcast"


class Packages:
    def __init__(self, directory):
        self.directory = Path(directory)
        [self.deb] = self.directory.glob("*.deb")
        [self.archive] = self.directory.glob("*.tar.gz")
        [self.image] = self.directory.glob("*-image.tar")

    def unpack(self, directory):
        """Unpacks the archive, and returns where its program is."""
        directory.mkdir()
        subprocess.run(["tar", "-xzf", self.archive, "-C", directory], check=True)
        [folder] = directory.iterdir()
        return folder / NAME

    def field(self, name):
        """A field of the .deb's description."""
        command = ["dpkg-deb", "--field", self.deb, name]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()

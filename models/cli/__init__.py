"""The console door: `spatialweave COMMAND`."""

from .console import main as main

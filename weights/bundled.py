"""The bundled models: the SHA-256 of NAME.safetensors in this folder.

NAME@N is an earlier version, kept so that old runs can be repeated.
"""

from __future__ import annotations

MODELS = {
    "buildings": "40d09ecf6344fad5b26d8878c4ea684bdcbc492a83bb3e0860ebc7e7c5805cd7",
    "buildings@1": "7dfc15b6f837f00ce6109dde2c911e7fd956b26cc42b23303cf03c7aada6f9d9",
    "buildings@2": "4648ec43c038c7309a17ce4ef10afec5295f0e2b5a78ff649d6c29ab48575e14",
    "buildings@3": "ca7c53aca29521a97ac238b829ac9fde8b60cbb534d6ea9e7d3eeb2ef68b52d4",
    "buildings@4": "694feb9634ce468a878f4378c191acd501ea8c54d32757da5d6fb3f77287897a",
    "buildings@5": "65b13d3ebcb81ad47293ff4ad89f155c67efe0edb6fd95af5e2a3e90ff1085a5",
    "buildings@6": "27f046556d8e9b3b45f83489bd9ffa8f79bfaa36672d01aa13fb6c3e7e51fb3b",
    "buildings-refiner": "ac8c7e19952a4cab8e370632b927eb7e7150941995b241ee009ada850e3b37f0",
    "buildings-refiner@1": "476e9bfa1a7e47e9a5cae90f1145bf5770f68a059d249adc916e02eeaeb7e2fd",
    "landcover": "1d51cff48442e5242f1f1849cde7ddad7c77c7a40928c1d56ad20ffcae147684",
    "landcover@1": "d3d8d31e472822c5a338806d6f766278113e20765ba80c2f6b7f0bc1b70cad50",
    "landcover@2": "3e13568ec0ddfdd9a4fa909cfcb27a36c007509b1303fb05b81bce529d116311",
    "landcover@3": "66fa420e0afd2c4fb2ea9c8928f38a0b63c33fde51bb16b161ea15d7a12b8c3a",
    "landcover@4": "23684d97d2347e2a7dae0111c2cec28a3ecd2b20044a7a6abbb4fbbfb771ec53",
    "landcover@5": "97176f198444376480f862f0e9bcc1536b65f482426ef22067829c3c3130a734",
    "landcover@6": "acc9c5d92f4db3fea37b984d474283ea9a21032f42d536ac11ddb01da404b988",
    "landcover-refiner": "b7c868a68e94ac717abb124132bc21fcf4f1237ae4cbbe7446e118078ec9ff9b",
    "landcover-refiner@1": "6d0ba2463d9f10e60536d6596a84d898aabe7c7c4e2ecdd27b29ea448e77c058",
    "landcover-small": "751b9308c3f0d3d036dec3f62f9ada6dc5d3fcb8d02a8ba23c4ae4b3c38cce86",
    "landcover-small@1": "b82167b8bb5fd88f6260426cc1fc919b36608fe0e5597bb51abbfb1919b6dd98",
}

SAME = {"buildings-small": "buildings@5"}  # two names of one file
MODELS |= {name: MODELS[other] for name, other in SAME.items()}


def list_models() -> tuple[str, ...]:
    """Return the names of the bundled models, without earlier versions."""
    return tuple(sorted(name for name in MODELS if "@" not in name))


def earlier_versions() -> tuple[str, ...]:
    return tuple(sorted(name for name in MODELS if "@" in name))

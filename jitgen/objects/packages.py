"""How build systems find a library: a CMake package and a pkg-config file, which lie beside it.

Both name places from their own, so that the folder may be moved. Not here: the library itself.
"""

from __future__ import annotations

#: CMake's names of the processors that a library of an architecture is for
_PROCESSORS = {"x86_64": "x86_64|AMD64|amd64", "aarch64": "aarch64|arm64|ARM64"}

_CONFIG = """\
# {name}: kernels made by {generator} for {architecture}.
# Imported targets: {name}::static and {name}::shared.
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^({processors})$")
  set({name}_FOUND FALSE)
  set({name}_NOT_FOUND_MESSAGE
    "{name} is for {architecture}, not for ${{CMAKE_SYSTEM_PROCESSOR}}")
  return()
endif()
if(NOT TARGET {name}::static)
  add_library({name}::static STATIC IMPORTED)
  set_target_properties({name}::static PROPERTIES
    IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/lib{name}.a"
    INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}")
endif()
if(NOT TARGET {name}::shared)
  add_library({name}::shared SHARED IMPORTED)
  set_target_properties({name}::shared PROPERTIES
    IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/lib{name}.so"
    IMPORTED_SONAME "lib{name}.so"
    INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}")
endif()
"""

_VERSION = """\
# Compatible: the same first number, and not older than asked for.
set(PACKAGE_VERSION "{version}")
if(NOT PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
elseif(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
elseif(PACKAGE_FIND_VERSION_MAJOR STREQUAL "{major}"
    AND PACKAGE_FIND_VERSION VERSION_LESS PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
else()
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
endif()
"""

_PKG_CONFIG = """\
prefix=${{pcfiledir}}

Name: {name}
Description: kernels made by {generator} for {architecture}
Version: {version}
Cflags: -I${{prefix}}
Libs: -L${{prefix}} -l{name}
"""


def package_files(name: str, architecture: str, generator: str, version: str) -> dict[str, str]:
    """File name -> text. `version` is that of the package, as in 1.2.3."""
    values = {
        "name": name, "architecture": architecture, "generator": generator, "version": version,
        "major": version.split(".")[0], "processors": _PROCESSORS[architecture],
    }  # fmt: skip
    return {
        f"{name}Config.cmake": _CONFIG.format(**values),
        f"{name}ConfigVersion.cmake": _VERSION.format(**values),
        f"{name}.pc": _PKG_CONFIG.format(**values),
    }

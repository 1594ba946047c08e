#include "fulmen/fulmen.h"

extern "C" const char* fulmen_version(void) { return FULMEN_VERSION; }

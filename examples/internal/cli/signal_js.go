package cli

import "os"

var hangUp []os.Signal

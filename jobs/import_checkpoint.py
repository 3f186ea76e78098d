"""spark-submit --properties-file FILE jobs/import_checkpoint.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import import_checkpoint

if __name__ == "__main__":
    sys.exit(main(import_checkpoint))

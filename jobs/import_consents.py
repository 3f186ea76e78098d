"""spark-submit --properties-file FILE jobs/import_consents.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import import_consents

if __name__ == "__main__":
    sys.exit(main(import_consents))
